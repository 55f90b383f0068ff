"""What is read and drawn for the benchmark of the data pipeline."""
from pathlib import Path

import numpy as np
import pytest

from hgd_det.data import shapes
from hgd_det.experiments.benchmarks import command
from hgd_det.experiments.benchmarks.data import drawn_samples, voc_boxes


def test_a_folder_in_voc_layout_is_measured(tmp_path, capsys):
    pytest.importorskip('mmdet')
    shapes.generate(tmp_path, train=4, test=1, seed=1)
    assert command.main(['data', '--rounds', '1', '--images', str(tmp_path / 'VOC2007')]) == 0
    rows = capsys.readouterr().out.splitlines()[-3:]
    assert all(row.startswith('data') for row in rows) and '5 images of' in rows[0]


def test_what_is_drawn_is_as_large_as_voc(tmp_path):
    cv2 = pytest.importorskip('cv2')
    samples = drawn_samples(tmp_path, count=3)
    assert all(cv2.imread(one['img_path']).shape == (375, 500, 3) for one in samples)
    assert all(70_000 < Path(one['img_path']).stat().st_size < 110_000 for one in samples)


def test_boxes_are_as_many_and_as_large_as_vocs():
    rng = np.random.default_rng(0)
    images = [voc_boxes(rng, 500, 300) for _ in range(2000)]
    boxes = np.concatenate(images)
    assert 2.3 < len(boxes) / len(images) < 2.5 and min(map(len, images)) == 1
    assert boxes.min() >= 0 and (boxes.max(axis=0) <= (500, 300, 500, 300)).all()
    assert ((boxes[:, 2:] - boxes[:, :2]).min(axis=0) > (39.9, 23.9)).all()
