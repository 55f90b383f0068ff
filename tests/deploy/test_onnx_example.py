"""examples/deploy_onnx.py runs where nothing of ours is installed, and finds the same."""
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from hgd_det.deploy.runtime import open_model

EXAMPLE = Path(__file__).resolve().parents[2] / 'examples' / 'deploy_onnx.py'
ALONE = '''
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {'torch', 'torchvision', 'mmdet', 'mmengine', 'mmcv', 'hgd_det', 'PIL'}:
            raise ImportError(f'{name} is not installed here')

sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
assert not {'torch', 'mmdet', 'mmengine', 'mmcv', 'hgd_det'} & sys.modules.keys()
'''


def example(*argv) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', ALONE, str(EXAMPLE), *map(str, argv)], text=True,
                          capture_output=True, timeout=120)


@pytest.fixture
def photo(tmp_path) -> Path:
    rng = np.random.default_rng(1)
    image = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (500, 375), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / 'photo.jpg'), image)
    return tmp_path / 'photo.jpg'


def test_it_finds_what_the_package_finds_without_torch(onnx_nms, photo):
    done = example(onnx_nms, photo, photo.with_name('out.png'))
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    model = open_model(onnx_nms)
    image = cv2.imread(str(photo))
    wanted = model([image[..., ::-1]])[0].above(.3)
    assert len(rows) == len(wanted.scores) > 3
    assert [row[0] for row in rows] == [model.classes[label] for label in wanted.labels]
    drawn = cv2.imread(str(photo.with_name('out.png')))
    assert drawn.shape == image.shape and (drawn != image).any()


def test_its_boxes_are_those_of_the_package(onnx_nms, onnx_raw, photo):
    pytest.importorskip('onnxruntime')
    import runpy
    script = runpy.run_path(str(EXAMPLE))
    session, classes = script['load'](str(onnx_nms))
    image = cv2.imread(str(photo))
    boxes, scores, labels = script['detect'](session, image)
    for path in (onnx_nms, onnx_raw):
        wanted = open_model(path)([image[..., ::-1]])[0].above(.3)
        np.testing.assert_allclose(boxes, wanted.boxes, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(scores, wanted.scores, rtol=1e-3)
        assert labels.tolist() == wanted.labels.tolist()
    assert tuple(classes) == open_model(onnx_nms).classes


def test_a_file_without_nms_is_refused_with_what_to_do(onnx_raw, photo):
    done = example(onnx_raw, photo, photo.with_name('out.png'))
    assert done.returncode == 1 and '--with-nms' in done.stderr and 'Traceback' not in done.stderr


def test_it_explains_itself_and_names_what_is_no_image(onnx_nms, tmp_path):
    assert 'image.jpg out.jpg' in example().stderr
    assert 'is not an image' in example(onnx_nms, tmp_path / 'none.jpg', tmp_path / 'out.jpg').stderr


def test_it_is_shorter_than_sixty_lines():
    assert len(EXAMPLE.read_text().splitlines()) < 60
