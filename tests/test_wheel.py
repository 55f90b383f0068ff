"""What `pip install` makes of the checkout works without it: a wheel, in a folder of its own, distils."""
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PIP = (sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q')
# What finds the checkout must not serve: neither its path nor the finder of an editable install
APART = '''
import sys
checkout, installed = sys.argv.pop(1), sys.argv.pop(1)
sys.path[:] = [installed, *(path for path in sys.path if path and not path.startswith(checkout)
                            or 'site-packages' in path)]
sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in repr(finder).lower()]
import hgd_det
assert hgd_det.__file__.startswith(installed), hgd_det.__file__
from hgd_det.cli.main import main
sys.exit(main(sys.argv[1:]))
'''
SHORT = ['--no-validate', '--cfg-options', 'train_cfg.max_iters=2', 'train_dataloader.batch_size=2',
         'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False']


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel of a copy of what git holds or would hold: building leaves files beside its source."""
    pytest.importorskip('setuptools')
    folder = tmp_path_factory.mktemp('wheel')
    names = subprocess.run(['git', '-C', str(ROOT), 'ls-files', '-co', '--exclude-standard', '-z', 'hgd_det',
                            'configs', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE'],
                           check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split('\0')):
        if (ROOT / name).is_file():
            (folder / 'source' / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / 'source' / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*PIP, 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-w', str(folder),
                    str(folder / 'source')], check=True)
    return next(folder.glob('*.whl'))


@pytest.mark.slow
def test_it_holds_every_module_and_every_config(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / 'hgd_det').rglob('*.py')}
    configs = {f'hgd_det/{path.relative_to(ROOT).as_posix()}' for path in (ROOT / 'configs').rglob('*.py')}
    assert len(configs) > 50 and modules | configs <= held
    assert not [name for name in held if name.startswith(('tests/', 'configs/'))]


@pytest.mark.slow
def test_installed_away_from_the_checkout_it_distils(wheel, tmp_path):
    installed, work = tmp_path / 'installed', tmp_path / 'work'
    work.mkdir()
    subprocess.run([*PIP, 'install', '--no-deps', '--no-index', '--target', str(installed), str(wheel)],
                   check=True)
    env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}

    def hgd_det(*words):
        done = subprocess.run([sys.executable, '-c', APART, str(ROOT), str(installed), *words], cwd=work,
                              env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    hgd_det('data', 'shapes', 'data/shapes', '--train', '8', '--test', '2')
    hgd_det('train', 'shapes/teacher', *SHORT)
    hgd_det('train', 'shapes', '--method', 'hgd', *SHORT)
    assert (work / 'work_dirs/shapes/hgd/iter_2.pth').is_file()
    for name in ('hgd/ssd_half_voc.py', 'configs/hgd/ssd_half_voc.py'):
        assert 'hgd: HGD' in hgd_det('inspect', name)
    assert not (installed / 'results').exists()
