"""What the front page promises exists: files it links to, numbers it shows, commands it names."""
import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md')), ROOT / 'CONTRIBUTING.md']


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_and_every_named_file_exists(page):
    text = page.read_text()
    for target in re.findall(r'\]\((?!https?:|#)([^)#]+)', text):
        assert (page.parent / target).exists(), target
    for name in set(re.findall(r'\b((?:configs|examples|tools)/[\w/]+\.(?:py|sh))\b', text)):
        mine = name.startswith(('configs/mine', 'configs/x'))
        assert mine or (ROOT / name).exists(), name


@pytest.mark.parametrize('name', ['shapes', 'bccd'])
def test_the_tables_means_come_from_results(name):
    rows = {}
    for row in csv.DictReader((ROOT / 'results' / f'{name}.csv').open()):
        if not row['options']:
            rows.setdefault(row['config'], []).append(100 * float(row['mAP']))
    text = (ROOT / 'README.md').read_text()
    checked = 0
    for config, values in rows.items():
        line = next((line for line in text.splitlines() if f'`{config}`' in line and '±' in line), None)
        if line is None:
            continue
        mean = sum(values) / len(values)
        spread = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
        assert f'{mean:.1f} ± {spread:.1f}' in line, (line, mean, spread)
        checked += 1
    assert checked >= 2
