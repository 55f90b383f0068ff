"""Peaks of processes of their own."""
import pytest

pytest.importorskip('mmdet')
from hgd_det.experiments.benchmarks import memory  # noqa: E402
from hgd_det.experiments.benchmarks.step import SHAPES  # noqa: E402
from hgd_det.experiments.cost import peak_of  # noqa: E402


@pytest.mark.slow
def test_a_row_sets_what_hgd_adds_beside_the_teachers_own_peak():
    row = memory.compare(32, 96, 1, '<=9', SHAPES)
    assert 'batch 32' in row.what and row.other > 10 and row.ours > 0
    assert row.ratio == pytest.approx(row.ours / row.other) and row.met


def test_the_peak_of_some_work_is_what_it_took_at_most():
    def work():
        bytes(bytearray(60_000_000))

    assert 100e6 < peak_of(work) < 150e6
    assert peak_of(lambda: None) < 20e6
