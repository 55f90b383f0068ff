"""Peaks of processes of their own."""
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

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
    # in a process of its own: this one may hold memory that earlier tests freed
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        assert 100e6 < pool.submit(peak_of, work).result() < 150e6
        assert pool.submit(peak_of, nothing).result() < 20e6


def work():
    bytes(bytearray(60_000_000))


def nothing():
    pass
