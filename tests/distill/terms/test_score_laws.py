"""What holds for every term that compares the class scores of two heads."""
import pytest
import torch

import hgd_det  # noqa: F401  (makes mmdet importable)
from hgd_det.distill.registry import TERMS
from hgd_det.errors import UserError
from hgd_det.testing import make_head_spec, make_scores, make_spec, score_lesson

BIG = 1e4
# term, options, and columns of the scores: 4 are softmax over three classes and background, 3 sigmoid
CASES = [('LogitKD', {}, 4), ('LogitKD', {}, 3), ('LogitL2', {}, 4), ('LogitL2', {}, 3),
         ('LogitL2', dict(center=True), 4), ('LogitL2', dict(space='prob'), 4),
         ('LogitL2', dict(space='prob'), 3), ('SoftLoss', {}, 4), ('SoftLoss', {}, 3)]


@pytest.fixture(params=CASES, ids=lambda case: '-'.join(map(str, (case[0], *case[1].items(), case[2]))))
def case(request):
    return request.param


def term_of(case, **more):
    kind, options, columns = case
    term = TERMS.build(dict(type=kind, **options, **more))
    term.sigmoid = columns == 3     # what setup() learns of the heads
    return term


def lesson_of(case, student, teacher, labels, **more):
    columns = case[2]
    return score_lesson(student[..., :columns], teacher[..., :columns], labels, num_classes=3, **more)


@pytest.mark.parametrize('region', ['pos', 'hard', 'all'])
def test_its_gradient_reaches_the_chosen_anchors_of_the_student_only(case, region):
    student, teacher, labels = make_scores()
    lesson, term = lesson_of(case, student, teacher, labels), term_of(case, region=region)
    term(lesson)['loss'].backward()
    assert torch.equal(student.grad.abs().sum(-1) > 0, lesson.region(region)) and teacher.grad is None
    assert not term.state_dict()        # nothing that a checkpoint could carry


@pytest.mark.parametrize('region', ['pos', 'hard', 'all'])
def test_the_order_of_the_images_does_not_matter(case, region):
    student, teacher, labels = make_scores(batch=3)
    term, turned = term_of(case, region=region), [2, 0, 1]
    one = term(lesson_of(case, student, teacher, labels))['loss']
    other = term(lesson_of(case, student[turned], teacher[turned], labels[turned]))['loss']
    assert torch.allclose(one, other)


def test_gradcheck(case):
    student, teacher, labels = make_scores(anchors=12, dtype=torch.float64)
    for region in ('pos', 'all'):      # the mined set itself jumps with the scores
        term = term_of(case, region=region)
        assert torch.autograd.gradcheck(
            lambda s, term=term: term(lesson_of(case, s, teacher, labels))['loss'], student)


@pytest.mark.parametrize('region', ['pos', 'hard'])
def test_a_batch_of_background_costs_exactly_nothing(case, region):
    student, teacher, labels = make_scores()
    out = term_of(case, region=region)(lesson_of(case, student, teacher, torch.full_like(labels, 3)))
    out['loss'].backward()
    assert out['loss'].item() == 0 and student.grad.abs().max() == 0 and out['agreement'] == 0


def test_ignored_anchors_take_no_part(case):
    student, teacher, labels = make_scores(batch=1)
    loss = term_of(case)(lesson_of(case, student, teacher, labels, label_weights=torch.zeros(1, 40)))['loss']
    loss.backward()
    assert loss.item() == 0 and student.grad.abs().max() == 0


def test_an_image_without_objects_adds_no_anchor(case):
    student, teacher, labels = make_scores()
    labels[1] = 3
    both = term_of(case)(lesson_of(case, student, teacher, labels))['loss']
    first = term_of(case)(lesson_of(case, student[:1], teacher[:1], labels[:1]))['loss']
    assert torch.allclose(both, first)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_scores_in_any_precision_stay_finite(case, dtype):
    _, _, labels = make_scores(batch=1)
    student = torch.full((1, 40, 4), -BIG, dtype=dtype)
    student[..., 0] = BIG
    teacher = -student
    student.requires_grad_()
    loss = term_of(case)(lesson_of(case, student, teacher, labels))['loss']
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and loss > 0
    assert student.grad.isfinite().all()
    # saturated probabilities do not move with the scores
    assert student.grad.abs().max() > 0 or case[1].get('space') == 'prob'


@pytest.mark.parametrize('kind', ['LogitKD', 'LogitL2', 'SoftLoss'])
def test_differing_detectors_are_refused_at_build_time(kind):
    maps = {'neck[0]': (8, 38)}
    same = torch.rand(6, 4)
    term = TERMS.build(dict(type=kind))
    term.setup(make_spec(maps, maps, head=make_head_spec(same)))
    for theirs, message in ((make_head_spec(torch.rand(5, 4)), 'student has 6 anchors and the teacher 5'),
                            (make_head_spec(same + 3), 'differ by up to 3 pixels'),
                            (make_head_spec(same, num_classes=4), '3 classes, the teacher 4')):
        with pytest.raises(UserError, match=f"'{kind}'.*{message}"):
            term.setup(make_spec(maps, maps, head=make_head_spec(same), teacher_head=theirs))
