"""No term loses anything by another's presence, whichever of the two comes first."""
import itertools

import pytest
import torch

from hgd_det.distill.registry import TERMS
from hgd_det.testing import every_term, make_batch

NAMES = sorted(every_term())
PAIRS = list(itertools.permutations(NAMES, 2))
CHAIN = list(zip(NAMES, NAMES[1:] + NAMES[:1], strict=True))    # each first once, and second once


def moves_targets(name):
    return TERMS.get(every_term()[name]['type']).retarget is not None


@pytest.fixture(scope='module')
def alone(everything):
    return {name: taught(everything, [name])[name] for name in NAMES}


def taught(everything, names):
    """``{name: (weighted loss, its gradient on the student)}`` of one step with these terms in this order."""
    model = everything.only(*names, weight=2.0)
    ready = model.data_preprocessor(make_batch(), True)
    losses = model.loss(ready['inputs'], ready['data_samples'])
    student = [p for p in model.student.parameters() if p.requires_grad]
    found = {}
    for name in names:
        value = sum(v for k, v in losses.items() if k == f'loss_{name}' or k.startswith(f'loss_{name}_'))
        gradient = torch.autograd.grad(value, student, retain_graph=True, allow_unused=True) \
            if value.requires_grad else [None] * len(student)
        found[name] = value.item(), torch.cat([torch.zeros(p.numel()) if g is None else g.flatten()
                                               for p, g in zip(student, gradient, strict=True)])
    return found


def beside_each_other(everything, alone, first, second):
    found = taught(everything, [first, second])
    moved = [name for name in (first, second) if moves_targets(name)]
    for name, (value, gradient) in found.items():
        expected, wanted = alone[name]
        if moved and name not in moved:     # other targets, other losses; but learning goes on
            assert gradient.abs().max() > 0 or not wanted.abs().max() > 0, name
            continue
        assert value == pytest.approx(expected, rel=1e-5, abs=1e-6), name
        scale = wanted.abs().max().clamp(min=1e-12)
        assert (gradient - wanted).abs().max() <= 1e-4 * scale, f'{name} learns something else'


def test_there_are_terms():
    assert len(NAMES) >= 23


def test_each_term_alone_teaches_the_student(everything, alone):
    silent = [name for name in NAMES if not moves_targets(name) and not alone[name][1].abs().max() > 0]
    assert not silent


@pytest.mark.parametrize(('first', 'second'), CHAIN, ids='+'.join)
def test_each_keeps_its_loss_and_its_gradient_beside_a_neighbour(everything, alone, first, second):
    beside_each_other(everything, alone, first, second)


@pytest.mark.slow
@pytest.mark.parametrize('first', NAMES)
def test_each_keeps_its_loss_and_its_gradient_beside_every_other_in_either_order(everything, alone, first):
    failed = []
    for second in NAMES:
        if second != first:
            try:
                beside_each_other(everything, alone, first, second)
            except AssertionError as error:
                failed.append(f'{first} before {second}: {error}'.splitlines()[0])
    assert not failed, '\n'.join(failed)
