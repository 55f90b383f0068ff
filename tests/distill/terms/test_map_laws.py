"""What holds for every term that compares maps and reads nothing else."""
import pytest
import torch
from torch import Tensor

import hgd_det  # noqa: F401  (makes mmdet importable)
from hgd_det.distill.registry import TERMS
from hgd_det.testing import make_lesson, make_maps, make_spec

SIZES = (4, 3, 2)
CASES = [('AttentionTransfer', dict(mode=mode)) for mode in ('code', 'sum', 'paper')] \
    + [('NST', dict(kernel=kernel)) for kernel in ('linear', 'poly', 'gaussian')] + [('FSP', {})]


@pytest.fixture(params=CASES, ids=lambda case: '-'.join((case[0], *case[1].values())))
def term(request):
    torch.manual_seed(0)
    kind, options = request.param
    made = TERMS.build(dict(type=kind, **options))
    made.setup(make_spec(*({f'neck[{i}]': (channels, size) for i, size in enumerate(SIZES)}
                           for channels in (3, 5))))
    return made


def test_the_gradient_reaches_the_student_and_what_is_learned_but_never_the_teacher(term):
    student, teacher = make_maps(3), make_maps(5, seed=1)
    term(make_lesson(student, teacher))['loss'].backward()
    assert all(v.grad.abs().sum() > 0 for v in (*student.values(), *term.parameters()))
    assert all(v.grad is None for v in teacher.values())


def test_a_batch_is_the_mean_of_its_images_in_any_order(term):
    student, teacher = make_maps(3), make_maps(5, seed=1)

    def value(index: list[int]) -> Tensor:
        return term(make_lesson({k: v[index] for k, v in student.items()},
                                {k: v[index] for k, v in teacher.items()}))['loss']
    assert torch.allclose(value([0, 1]), value([1, 0]))
    assert torch.allclose(value([0, 1]), (value([0]) + value([1])) / 2)
