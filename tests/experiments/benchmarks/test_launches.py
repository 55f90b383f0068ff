"""What a step asks of a GPU is counted, backward too, and cannot grow unnoticed."""
import csv
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmdet')
from hgd_det.device import as_if_launched  # noqa: E402
from hgd_det.experiments.benchmarks import launches  # noqa: E402
from hgd_det.experiments.benchmarks.launches import OVER, STEP, TEACHER, Counted  # noqa: E402

pytestmark = pytest.mark.thorough

TABLE = Path(__file__).resolve().parents[3] / 'results/launches.csv'


def rows():
    with TABLE.open(newline='', encoding='utf-8') as file:
        return {(row['config'], row['method']): row for row in csv.DictReader(file)}


def test_the_table_has_every_config():
    assert set(rows()) <= set(launches.configs()) and len(rows()) > 20
    assert set(OVER) <= {method for _, method in launches.configs()}


# the shapes first: of a thorough module the first case is the fast one
@pytest.mark.parametrize(('pair', 'method'), launches.configs()[::-1])
def test_no_step_asks_for_more_than_the_table_says(pair, method):
    found = launches.count(pair, method)
    # a new method has its budget, and a row once the table is written again
    kept = rows().get((pair, method), dict(step=found.step, student=found.student, waits=0))
    assert found.step <= int(kept['step']) and found.student <= int(kept['student'])
    assert found.waits <= int(kept['waits'])
    assert found.student <= launches.ALONE
    if method not in OVER:
        assert found.beyond <= found.budget and found.waits == 0


def test_the_count_does_not_grow_with_the_batch():
    few, many = (launches.count('shapes', 'hgd', batch) for batch in (3, 9))
    assert (many.step, many.student, many.waits) == (few.step, few.student, 0)


def test_operations_are_counted_in_backward_and_views_and_allocations_are_not():
    x = torch.ones(3, 4, requires_grad=True)
    with Counted() as found:
        y = (x * 2).view(4, 3).t()
        torch.empty(5)
    assert found.calls[STEP] == {'mul': 1}
    with found:
        y.sum().backward()
    assert found.calls[STEP] == {'mul': 2, 'sum': 1, 'ones_like': 1}


@pytest.mark.parametrize('ask', [
    lambda x: x.item(), lambda x: bool(x > 0), lambda x: x.nonzero(), lambda x: x[x > 0],
    lambda x: x.tolist(), lambda x: x.view(1).numpy(), lambda x: x.view(1)[[0]],
    lambda x: x.new_tensor([1, 2]), lambda x: x.cpu(), lambda x: torch.tensor([1.], device=x.device),
    lambda x: x.unique(), lambda x: x.masked_select(x > 0),
    lambda x: x.clone().view(1).__setitem__(x.view(1) > 0, x.new_ones(1))])
def test_every_way_to_wait_is_seen(ask):
    with Counted() as found:
        ask(torch.tensor(2.))
    assert found.waits[STEP].total() >= 1
    assert all('test_launches' in line for _, line in found.waits[STEP])


def test_a_part_can_be_counted_apart():
    class Model:
        def observe(self, x):
            return x + 1

    model, found, x = Model(), Counted(), torch.ones(2)
    with found.apart(model, 'observe', TEACHER), found:
        model.observe(x).mul(2)
    assert found.launches(TEACHER) == 1 and found.calls[STEP] == {'mul': 1}
    assert 'observe' not in vars(model)


def test_the_form_of_a_gpu_can_be_forced():
    from hgd_det.device import launches as launched
    x = torch.ones(1)
    assert not launched(x)
    with as_if_launched():
        assert launched(x)
        with as_if_launched(False):
            assert not launched(x)
    assert not launched(x)
