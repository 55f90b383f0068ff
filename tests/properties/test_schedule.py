"""The weight of a term over any training under any schedule."""
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hgd_det.distill.options import check
from hgd_det.distill.schedule import Balance, Progress, Schedule
from hgd_det.errors import UserError

SHARE, COUNT = st.floats(0, 1, exclude_max=True), st.integers(0, 300)
OPTIONS = st.fixed_dictionaries({},
                                optional=dict(weight=st.floats(0, 1e6) | st.just('auto'),
                                              warmup=SHARE | COUNT,
                                              ramp=SHARE | COUNT,
                                              end=st.just(0.) | st.floats(1e-6, 100),
                                              stop=SHARE | COUNT | st.none(),
                                              detection=st.floats(0, 10),
                                              ratio=st.floats(0, 100),
                                              average=st.integers(1, 500)))
ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(10 ** 400)


def whole(value, total):
    return round(value * total) if isinstance(value, float) and value < 1 else int(value)


@given(OPTIONS, st.integers(1, 300))
def test_a_weight_is_never_negative_or_endless_and_counts_only_between_warm_up_and_stop(options, total):
    schedule = Schedule(**options)
    factors = [schedule.factor(Progress(i, total)) for i in range(total + 1)]
    assert all(math.isfinite(factor) and factor >= 0 for factor in factors)
    assert max(factors) <= max(1., schedule.end) * (1 + 1e-9)
    begins = whole(schedule.warmup, total)
    stops = total + 1 if schedule.stop is None else whole(schedule.stop, total)
    assert not any(factors[:begins]) and not any(factors[max(stops, 0):])
    if schedule.end > 0:
        assert all(factors[schedule.begins(total):stops])
    assert not any(factors[:min(schedule.begins(total), stops)])


@given(OPTIONS, st.integers(1, 300))
def test_a_rise_never_falls_and_full_strength_is_one(options, total):
    schedule = Schedule(**{**options, 'end': 1., 'stop': None})
    factors = [schedule.factor(Progress(i, total)) for i in range(total + 1)]
    assert factors == sorted(factors) and set(factors) <= {0., 1.} or whole(schedule.ramp, total) > 1
    assert factors == sorted(factors)
    if whole(schedule.warmup, total) + whole(schedule.ramp, total) <= total:
        assert factors[-1] == 1


@given(OPTIONS, st.integers(1, 300))
def test_what_is_not_refused_counts_at_some_iteration_and_lets_the_student_learn(options, total):
    schedule = Schedule(**options)
    try:
        schedule.check(total, 'a')
    except UserError as error:
        assert "term 'a'" in str(error)
        return
    factors = [schedule.factor(Progress(i, total)) for i in range(total)]
    if schedule.end > 0 and schedule.begins(total) < total:
        stop = total if schedule.stop is None else whole(schedule.stop, total)
        assert any(factors) or schedule.begins(total) >= stop
    if schedule.detection == 0:
        assert not all(factors)


@given(st.sampled_from(Schedule.KEYS), ANYTHING)
def test_a_value_that_makes_no_sense_is_refused_and_nothing_else_happens(key, value):
    try:
        check('a', Schedule, {key: value})  # as for every entry of a config
        schedule = Schedule(**{key: value})
    except UserError as error:
        assert key in str(error)
    else:
        factors = [schedule.factor(Progress(i, 50)) for i in range(51)]
        assert all(math.isfinite(factor) and factor >= 0 for factor in factors)
        if not schedule.auto:
            assert math.isfinite(float(schedule.weight))


@given(
    st.lists(st.tuples(st.floats(allow_nan=True, width=32), st.floats(allow_nan=True, width=32)),
             max_size=12), st.integers(1, 5), st.floats(0, 10))
def test_a_balance_is_never_negative_or_endless_and_stays_after_its_average(pairs, average, ratio):
    balance, seen = Balance(ratio, average), []
    for detection, term in pairs:
        balance.update(torch.tensor(abs(detection)), torch.tensor(abs(term)))
        seen.append(balance.factor.item())
        assert math.isfinite(seen[-1]) and seen[-1] >= 0
    usable = [i for i, (detection, term) in enumerate(pairs)
              if math.isfinite(detection) and math.isfinite(term) and term != 0]
    if len(usable) >= average:
        last = usable[average - 1]
        assert set(seen[last:]) == {seen[last]}
    used = [pairs[i] for i in usable[:average]]
    if used and ratio:
        wanted = ratio * sum(abs(d) for d, _ in used) / sum(abs(t) for _, t in used)
        assert balance.factor.item() == pytest.approx(wanted, rel=1e-6)
