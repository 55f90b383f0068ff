"""When the stand-in is served, when it keeps out of the way, and what the other operators say."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import hgd_det
from hgd_det import compat
from hgd_det.compat import finder
from hgd_det.compat.environment import has_compiled_ops
from hgd_det.errors import MissingOpError, UserError

ROOT = Path(hgd_det.__file__).parents[1]
without_ops = pytest.mark.skipif(has_compiled_ops(), reason='this mmcv has its compiled operators')


def python(code, *path, flags=()):
    """Run code in a fresh interpreter; returns its output (both streams)."""
    search = [str(p) for p in (*path, ROOT)]
    code = f'import sys; sys.path[:0] = {search}\n' + textwrap.dedent(code)
    done = subprocess.run([sys.executable, *flags, '-c', code], text=True, timeout=120,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_mmdet_models_import_after_hgd_det():
    assert 'fine' in python('import hgd_det, mmdet.models, mmcv.ops; print("fine")')


def test_importing_hgd_det_imports_nothing_heavy_and_takes_no_time():
    out = python('''
        import time
        before, start = set(sys.modules), time.perf_counter()
        import hgd_det
        print(time.perf_counter() - start, *set(sys.modules) - before)
        ''')
    seconds, *modules = out.split()
    assert not {'torch', 'numpy', 'cv2', 'mmcv', 'mmengine', 'mmdet'} & set(modules)
    assert len(modules) < 25, modules
    assert float(seconds) < 0.5  # a few milliseconds where nobody else uses the machine


def test_installing_twice_leaves_one_finder_and_it_is_last():
    compat.install()
    compat.install()
    assert sys.meta_path.count(finder.StandInFinder) == 1
    assert finder.StandInFinder.find_spec('mmcv._extra') is None
    assert finder.StandInFinder.find_spec('other._ext') is None


@pytest.fixture
def fake_mmcv(tmp_path):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').touch()
    return tmp_path


def test_a_real_extension_is_used_untouched(fake_mmcv):
    (fake_mmcv / 'mmcv' / '_ext.py').write_text('nms = "the compiled one"\n')
    out = python('''
        import hgd_det, mmcv._ext
        from hgd_det.compat.environment import has_compiled_ops
        print(mmcv._ext.nms, hasattr(mmcv._ext, 'softnms'), has_compiled_ops())
        ''', fake_mmcv)
    assert out.split() == 'the compiled one False True'.split()


def test_a_broken_extension_fails_as_it_would_without_us(fake_mmcv):
    (fake_mmcv / 'mmcv' / '_ext.py').write_text('raise ImportError("undefined symbol: _ZN3c10")\n')
    out = python('''
        import hgd_det
        try:
            import mmcv._ext
        except ImportError as error:
            print(error)
        ''', fake_mmcv)
    assert out.strip() == 'undefined symbol: _ZN3c10'


@without_ops
def test_every_operator_mmcv_asks_for_exists():
    from mmcv.utils import ext_loader
    ext = ext_loader.load_ext('_ext', ['nms', 'roi_align_forward', 'deform_conv_forward'])
    assert ext.nms.__module__ == 'hgd_det.compat.nms'
    assert not hasattr(ext, '__path__')  # or it would pass for a package


@without_ops
def test_a_missing_operator_says_its_name_and_how_to_get_it():
    import torch
    from mmcv.ops import roi_pool
    words = "'roi_pool_forward'.*deform_conv.*type='RoIAlign'.* pip install "
    with pytest.raises(MissingOpError, match=words) as caught:
        roi_pool(torch.zeros(1, 2, 5, 5), torch.zeros(1, 5), (2, 2))
    assert isinstance(caught.value, UserError) and isinstance(caught.value, NotImplementedError)
