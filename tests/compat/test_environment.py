"""Versions, and the advice for installations that do not fit."""

import pytest

from hgd_det import compat
from hgd_det.compat import environment
from hgd_det.errors import UserError

GOOD = {'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'onedl-mmdetection': '3.5.1',
        'torch': '2.13.0+cpu', 'opencv-python-headless': '4.12.0.88', 'pycocotools': '2.0.11',
        'faster-coco-eval': '1.8.0'}
CLASSIC = {**{name: number for name, number in GOOD.items() if not name.startswith('onedl-')},
           'mmengine': '0.10.7', 'mmcv-lite': '2.1.0', 'mmdet': '3.3.0'}


@pytest.fixture
def pretend(monkeypatch):
    def install(packages):
        monkeypatch.setattr(environment, 'version', packages.get)
        return list(environment.problems())
    return install


def test_this_installation_fits_and_its_versions_are_known():
    compat.check()
    found = compat.versions()
    assert set(found) == {'python', 'numpy', 'torch', 'mmengine', 'mmcv', 'mmdet', 'cv2', 'ops'}
    assert all(found.values())
    import mmdet
    assert found['mmdet'].startswith(mmdet.__version__)


@pytest.mark.parametrize('packages', [GOOD, CLASSIC, {**GOOD, 'opencv-python': '4.12.0.88'}])
def test_good_installations_have_no_problems(pretend, packages):
    assert pretend(packages) == []


@pytest.mark.parametrize('change, wanted', [
    ({'torch': None}, 'torch is missing: pip install "torch>=2.4"'),
    ({'torch': '2.1.0'}, 'torch is 2.1.0, wanted is 2.4 or later'),
    ({'onedl-mmcv': '2.3.0'}, 'onedl-mmcv is 2.3.0, wanted is 2.3.6'),
    ({'mmdet': '3.3.0'}, 'onedl-mmdetection and mmdet overwrite each other'),
    ({'onedl-mmcv': None}, 'mmcv is missing: pip install "onedl-mmcv>=2.3.6"'),
    ({'onedl-mmcv': None, 'mmcv': '2.1.0'}, 'come from two stacks'),
    ({'onedl-mmcv': None, 'mmcv': '2.2.0'}, 'mmcv is 2.2.0, wanted is 2.1 or later and below 2.2'),
    ({'opencv-python-headless': None}, 'cv2 is missing: pip install "opencv-python-headless>=4"'),
])
def test_a_problem_is_named_with_its_cure(pretend, change, wanted):
    assert any(wanted in problem for problem in pretend({**GOOD, **change}))


def test_check_reports_all_problems_at_once(pretend):
    pretend({})
    with pytest.raises(UserError) as caught:
        environment.check()
    assert all(f'- {module} is missing' in str(caught.value) for module in environment.PROVIDERS)


def test_opencv_without_graphics_libraries_is_explained(monkeypatch):
    def fail(name):
        raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')
    monkeypatch.setattr(environment, 'import_module', fail)
    with pytest.raises(UserError, match='libGL.so.1.*--no-deps opencv-python-headless'):
        environment.check()


@pytest.mark.parametrize('error, wanted', [
    (ImportError('/x/mmcv/_ext.so: undefined symbol: _ZN3c105Error'), 'another torch than'),
    (ImportError('something else'), None),
    (ModuleNotFoundError("No module named 'torch'", name='torch'), None),  # it is installed here
    (ModuleNotFoundError("No module named 'left_pad'", name='left_pad'), None),
])
def test_explain_speaks_only_when_it_knows_better(error, wanted):
    found = environment.explain(error)
    assert found is None if wanted is None else wanted in found


def test_explain_a_missing_package(pretend):
    pretend({})
    error = ModuleNotFoundError("No module named 'mmdet.apis'", name='mmdet.apis')
    assert environment.explain(error) == (
        'mmdet is missing: pip install "onedl-mmdetection>=3.5.1"')
