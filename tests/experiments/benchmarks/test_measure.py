"""Who is faster is told rightly."""
import numpy as np
import pytest

from hgd_det.experiments.benchmarks.measure import Row, compare, row


def test_the_ratio_is_how_much_longer_the_other_takes():
    found = compare('sums', 'sums/s', lambda: sum(range(300_000)), lambda: sum(range(3_000_000)), work=1,
                    rounds=5)
    assert 5 < found.ratio < 20 and found.ours > found.other
    assert found.spread[0] <= found.ratio <= found.spread[1]


def test_both_sides_draw_the_same_random_numbers():
    ours, other = [], []
    compare('', '', lambda: ours.append(np.random.rand()), lambda: other.append(np.random.rand()), work=1,
            rounds=3)
    assert ours == other and len(set(ours)) == 4


@pytest.mark.parametrize('goal, ratio, met', [('', 9, None), ('>=3', 3, True), ('>=3', 2.9, False),
                                              ('<=1.1', 1.1, True), ('<=1.1', 1.2, False)])
def test_a_goal_is_met_or_not(goal, ratio, met):
    assert Row('', '', 1, 1, ratio, (ratio, ratio), goal).met is met


def test_the_ratio_of_a_row_is_a_median_and_its_spread_quartiles():
    found = row('', 'ms', 1, 2, [5, 1, 2, 4, 3])
    assert (found.ratio, found.spread) == (3, (2, 4))
