"""tools/benchmark.py: who is faster is told rightly, and every registered benchmark is in the table."""
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from hgd_det.data import shapes


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.setattr(sys, 'path', list(sys.path))
    path = Path(__file__).parents[1] / 'tools/benchmark.py'
    spec = importlib.util.spec_from_file_location('benchmark', path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'benchmark', module)
    spec.loader.exec_module(module)
    return module


def test_the_ratio_is_how_much_longer_the_other_takes(tool):
    row = tool.compare('sums', 'sums/s', lambda: sum(range(300_000)), lambda: sum(range(3_000_000)),
                       work=1, rounds=5)
    assert 5 < row.ratio < 20 and row.ours > row.other
    assert row.spread[0] <= row.ratio <= row.spread[1]


def test_both_sides_draw_the_same_random_numbers(tool):
    import numpy as np
    ours, other = [], []
    tool.compare('', '', lambda: ours.append(np.random.rand()), lambda: other.append(np.random.rand()),
                 work=1, rounds=3)
    assert ours == other and len(set(ours)) == 4


def test_a_registered_benchmark_is_run_by_name_and_written_as_json(tool, tmp_path, capsys):
    @tool.benchmark('sums')
    def sums(options):
        yield tool.compare('a sum', 'sums/s', lambda: sum(range(9999)), lambda: sum(range(9999)), work=1,
                           rounds=options.rounds)

    out = tmp_path / 'found.json'
    assert tool.main(['sums', '--rounds', '3', '--json', str(out)]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ['benchmark', 'what', 'ours'] and line.startswith('sums       a sum')
    report = json.loads(out.read_text())
    assert [row['benchmark'] for row in report['rows']] == ['sums'] and report['versions']['numpy']


def test_the_data_benchmark_measures_a_folder_in_voc_layout(tool, tmp_path, capsys):
    pytest.importorskip('mmdet')
    shapes.generate(tmp_path, train=4, test=1, seed=1)
    assert tool.main(['data', '--rounds', '1', '--images', str(tmp_path / 'VOC2007')]) == 0
    rows = capsys.readouterr().out.splitlines()[-3:]
    assert all(row.startswith('data') for row in rows) and '5 images of' in rows[0]


def test_what_is_drawn_is_as_large_as_voc(tool, tmp_path):
    cv2 = pytest.importorskip('cv2')
    samples = tool.drawn_samples(tmp_path, count=3)
    assert all(cv2.imread(one['img_path']).shape == (375, 500, 3) for one in samples)
    assert all(70_000 < Path(one['img_path']).stat().st_size < 110_000 for one in samples)


def test_mistakes_are_told_in_a_sentence(tool, tmp_path, capsys):
    assert tool.main(['data', '--images', str(tmp_path)]) == 2
    assert 'has no image with boxes' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main(['speed'])
    assert 'no benchmark speed; there is data' in capsys.readouterr().err
