"""The page in a real browser: Chromium, driven by playwright-core (`make browser` brings both)."""
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hgd_det.report.page import write_report

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def playwright() -> str | None:
    """The folder of playwright-core: HGD_DET_PLAYWRIGHT, what `make browser` made, or where node finds it."""
    for folder in filter(None, (os.environ.get('HGD_DET_PLAYWRIGHT'),
                                ROOT / '.browser/node_modules/playwright-core')):
        if Path(folder, 'package.json').is_file():
            return str(Path(folder).resolve())
    found = shutil.which('node') and subprocess.run(
        ['node', '-e', 'console.log(path.dirname(require.resolve("playwright-core/package.json")))'],
        capture_output=True, text=True)
    return found.stdout.strip() if found and found.returncode == 0 else None


@pytest.fixture(scope='module')
def seen(family, tmp_path_factory):
    """What Chromium saw of the page of three tiny detectors, by the width of the window."""
    chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    library = playwright()
    if not shutil.which('node') or library is None or chromium is None:
        lacking = [name for name, there in (('node', shutil.which('node')), ('playwright-core', library),
                                            ('chromium', chromium)) if not there]
        pytest.skip(f'{" and ".join(lacking)} not found; make browser brings Chromium and playwright-core')
    page = write_report(family, tmp_path_factory.mktemp('browser') / 'report.html', images=2, score=0.05)
    done = subprocess.run(['node', str(Path(__file__).with_name('look.cjs')), library, chromium, str(page)],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return {int(width): found for width, found in json.loads(done.stdout).items()}


@pytest.mark.slow
@pytest.mark.parametrize('width', [390, 1200])
def test_the_browser_has_nothing_to_complain_of(seen, width):
    assert seen[width]['complaints'] == []
    assert seen[width]['title']


@pytest.mark.parametrize('width', [390, 1200])
def test_every_image_is_decoded_and_tables_and_charts_are_there(seen, width):
    found = seen[width]
    assert found['images'] == found['decoded'] == 24
    assert found['tables'] >= 5 and len(found['charts']) >= 6 and min(found['charts']) > 300


@pytest.mark.parametrize('width', [390, 1200])
def test_nothing_has_to_be_scrolled_sideways(seen, width):
    assert seen[width]['width'] <= width
