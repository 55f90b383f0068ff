"""What holds for every term that compares maps and reads nothing else."""
import pytest
import torch
from torch import Tensor

import hgd_det  # noqa: F401  (makes mmdet importable)
from hgd_det.distill.registry import TERMS
from hgd_det.testing import make_lesson, make_maps, make_spec

SIZES = (4, 3, 2)
# term, options, channels of the student beside the teacher's five, and whether the term learns anything
CASES = [('AttentionTransfer', dict(mode=mode), 3, False) for mode in ('code', 'sum', 'paper')] \
    + [('NST', dict(kernel=kernel), 3, False) for kernel in ('linear', 'poly', 'gaussian')] \
    + [('FSP', {}, 3, True), ('FSP', {}, 5, False)]


@pytest.fixture(params=CASES, ids=lambda case: '-'.join((case[0], *case[1].values(), str(case[2]))))
def taught(request):
    """A term, and maps of student and teacher."""
    torch.manual_seed(0)
    kind, options, channels, learns = request.param
    term = TERMS.build(dict(type=kind, **options))
    term.setup(make_spec(*({f'neck[{i}]': (count, size) for i, size in enumerate(SIZES)}
                           for count in (channels, 5))))
    assert bool(list(term.parameters())) == learns
    return term, make_maps(channels, SIZES), make_maps(5, SIZES, seed=1)


def test_the_gradient_reaches_the_student_and_what_is_learned_but_never_the_teacher(taught):
    term, student, teacher = taught
    term(make_lesson(student, teacher))['loss'].backward()
    assert all(v.grad.abs().sum() > 0 for v in (*student.values(), *term.parameters()))
    assert all(v.grad is None for v in teacher.values())


def test_a_batch_is_the_mean_of_its_images_in_any_order(taught):
    term, student, teacher = taught

    def value(index: list[int]) -> Tensor:
        return term(make_lesson({k: v[index] for k, v in student.items()},
                                {k: v[index] for k, v in teacher.items()}))['loss']
    assert torch.allclose(value([0, 1]), value([1, 0]))
    assert torch.allclose(value([0, 1]), (value([0]) + value([1])) / 2)
