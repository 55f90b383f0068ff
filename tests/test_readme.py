"""What the front page promises exists: files it links to, numbers it shows, commands it names."""
import csv
import re
from pathlib import Path

import pytest

from hgd_det.cli.main import verbs
from hgd_det.errors import UserError
from hgd_det.paths import find_config, find_method

ROOT = Path(__file__).resolve().parent.parent
OPEN = {'PAIR', 'METHOD', 'NAME', 'and'}    # words that stand for a name
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md')), ROOT / 'CONTRIBUTING.md']


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_and_every_named_file_exists(page):
    text = page.read_text()
    for target in re.findall(r'\]\((?!https?:|#)([^)#]+)', text):
        assert (page.parent / target).exists(), target
    for name in set(re.findall(r'\b((?:configs|examples|tools)/[\w/]+\.(?:py|sh))\b', text)):
        mine = name.startswith(('configs/mine', 'configs/x'))
        assert mine or (ROOT / name).exists(), name


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_pair_and_method_that_it_names_exists(page):
    text = page.read_text()
    for config, methods in re.findall(r'([\w./-]+) --method ((?:[\w./]+\+?)+)', text):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(ROOT)
            assert config in OPEN or find_config(config), config
        for method in methods.rstrip('.').split('+'):
            try:
                assert method in OPEN or find_method(method)
            except UserError:
                assert method.startswith('my_'), (config, method)
    for verb in re.findall(r'\bhgd-det ([a-z]+)\b', text):
        assert verb in verbs(), verb


@pytest.mark.parametrize('name', ['shapes', 'bccd'])
def test_the_tables_means_come_from_results(name):
    rows = {}
    for row in csv.DictReader((ROOT / 'results' / f'{name}.csv').open()):
        if not row['options']:
            config, method = row['config'], row['method']
            told = f'{config} --method {method}' if method else f'configs/{config}.py'
            rows.setdefault(told, []).append(100 * float(row['mAP']))
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
    assert checked == {'shapes': 7, 'bccd': 6}[name]
