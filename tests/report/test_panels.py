"""Maps and boxes of detectors on images."""
import numpy as np
import pytest

from hgd_det.deploy.postprocess import Detections
from hgd_det.errors import UserError
from hgd_det.report import panels
from hgd_det.report.detectors import Scene, Scenes, look, open_detector
from hgd_det.report.errors import Outcome, outcome
from hgd_det.report.panels import View


@pytest.fixture(scope='module')
def detector(trained):
    return open_detector(trained / 'iter_4.pth', name='tiny')


def test_likeness_does_not_ask_how_many_channels_or_in_which_order():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(4, 8, 8))
    assert panels.likeness(one, one) == pytest.approx(1)
    assert panels.likeness(one, 3 * one[::-1] + 2) == pytest.approx(1)
    assert panels.likeness(one, np.concatenate([one, one])) == pytest.approx(1)
    assert panels.likeness(one, rng.normal(size=(4, 8, 8))) < .5
    assert panels.likeness(one, rng.normal(size=(4, 4, 4))) is None
    assert panels.likeness(one, np.zeros((4, 8, 8))) is None


def test_maps_are_those_the_detector_computes_and_strong_places_are_yellow(detector):
    stages = panels.stages(detector)
    sizes = panels.choose([stages])
    image = np.random.default_rng(0).integers(0, 256, (80, 64, 3), dtype=np.uint8)
    maps = panels.maps(detector, stages, sizes, image)
    assert list(maps) == sizes and all(min(size) >= panels.SMALLEST for size in sizes)
    size = sizes[-1]
    assert maps[size].shape == (stages[size].channels, *size)
    seen, strength = panels.heat(maps[size]), np.abs(maps[size]).mean(0)
    strongest = np.unravel_index(strength.argmax(), size)
    assert seen.shape == (*size, 3) and seen[strongest].tolist() == [253, 231, 37]    # viridis' yellow


def test_stages_can_be_named_by_their_heights(detector):
    stages = panels.stages(detector)
    assert panels.choose([stages], [12, 24]) == [(24, 24), (12, 12)]
    with pytest.raises(UserError, match='no detector has a stage of height 7; there are 96, 48'):
        panels.choose([stages], [7])


def test_objects_that_the_baseline_misses_are_drawn_in_yellow_and_missed_ones_in_white_dots():
    truth = np.array([[10, 10, 30, 30], [60, 60, 90, 90]], np.float32)
    scene = Scene('a.jpg', np.full((100, 100, 3), 90, np.uint8), truth, np.array([0, 1]), np.zeros(2, bool))
    found = Detections(truth[:1], np.array([.9], np.float32), np.array([0]))
    view = View(found, outcome(*found, scene.boxes, scene.labels, scene.difficult), {})
    nothing = Outcome([], ['missed', 'missed'], [-1, -1])

    def colours(baseline):
        return {tuple(pixel) for pixel in panels.draw(scene, view, baseline).reshape(-1, 3).tolist()}

    assert panels.RECALLED in colours(nothing) and panels.FOUND not in colours(nothing)
    assert panels.FOUND in colours(None) and panels.RECALLED not in colours(None)
    assert panels.MISSED in colours(None) and panels.WRONG not in colours(None)


def test_the_test_set_gives_images_and_objects_in_pixels_of_the_file(detector):
    tests = Scenes(detector.student.config)
    scene = tests.scene(0)
    assert (len(tests), tests.classes) == (4, ('disc', 'square', 'star'))
    assert scene.boxes.shape == (2, 4) and scene.difficult.tolist() == [False, True]
    height, width = scene.image.shape[:2]
    assert (scene.boxes[:, 2] <= width).all() and (scene.boxes[:, 3] <= height).all()
    found = look(detector, scene.image, 0.0)
    assert len(found.boxes) and (look(detector, scene.image, 1.0).boxes).size == 0
