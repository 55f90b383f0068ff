import pytest
import torch

from hgd_det.distill.schedule import Balance, Progress, Schedule
from hgd_det.errors import UserError


@pytest.mark.parametrize('options, expected', [
    (dict(), [1, 1, 1, 1]),
    (dict(warmup=5), [0, 1, 1, 1]),
    (dict(warmup=0.05), [0, 1, 1, 1]),
    (dict(warmup=5, ramp=10), [0, 0, 0.5, 1]),
    (dict(stop=0.1), [1, 1, 0, 0]),
    (dict(warmup=5, stop=20), [0, 1, 1, 0]),
    (dict(end=0.5), [.98, .975, .95, .55]),
    (dict(warmup=5, stop=15, end=3), [0, 1, 2, 0]),
])
def test_the_factor_is_a_pure_function_of_the_iteration(options, expected):
    schedule = Schedule(**options)
    assert [schedule.factor(Progress(i, 100)) for i in (4, 5, 10, 90)] == pytest.approx(expected)


@pytest.mark.parametrize('options, text', [
    (dict(weight=-1), 'negative weight'), (dict(weight='balanced'), "number or 'auto'"),
    (dict(warmup=-1), 'warmup=-1'), (dict(average=0), 'at least one'),
    (dict(weight=float('nan')), 'negative weight'), (dict(ratio=-2), 'ratio=-2'),
    (dict(detection=-1), 'detection=-1'),
])
def test_a_schedule_that_makes_no_sense_is_refused(options, text):
    with pytest.raises(UserError, match=text):
        Schedule(**options)


def test_a_warm_up_longer_than_training_is_refused():
    with pytest.raises(UserError, match='training has only 100'):
        Schedule(warmup=100).check(100, 'hgd')
    with pytest.raises(UserError, match='before warmup'):
        Schedule(warmup=0.5, stop=0.4).check(100, 'hgd')
    Schedule(warmup=99).check(100, 'hgd')


def test_a_phase_without_detection_must_end():
    for endless in (Schedule(detection=0), Schedule(detection=0, stop=100)):
        with pytest.raises(UserError, match='never learn to detect'):
            endless.check(100, 'mask')
    Schedule(detection=0, stop=0.3).check(100, 'mask')
    Schedule(detection=0, warmup=0.5).check(100, 'mask')


def test_the_balance_averages_then_freezes():
    balance = Balance(ratio=2.0, average=2)
    assert balance.factor == 0.0
    balance.update(torch.tensor(6.0), torch.tensor(1.0))
    assert balance.factor == pytest.approx(12.0)
    balance.update(torch.tensor(2.0), torch.tensor(3.0))
    assert balance.factor == pytest.approx(4.0)
    balance.update(torch.tensor(1e6), torch.tensor(1.0))
    assert balance.factor == pytest.approx(4.0)


def test_the_balance_is_part_of_the_state_and_ignores_what_is_not_finite():
    balance, other = Balance(average=3), Balance(average=3)
    balance.update(torch.tensor(3.0), torch.tensor(1.0))
    balance.update(torch.tensor(float('nan')), torch.tensor(1.0))
    balance.update(torch.tensor(3.0), torch.tensor(0.0))
    other.load_state_dict(balance.state_dict())
    assert other.factor == balance.factor == 3.0 and int(other.count) == 1
