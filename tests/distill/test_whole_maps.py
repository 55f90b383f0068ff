"""What a GPU runs equals what a CPU runs: HGD of all stages at once, in value and in every gradient."""
import pytest
import torch

from hgd_det.device import as_if_launched
from hgd_det.distill.cells import box_masks
from hgd_det.distill.functional import box_mask, pad_boxes
from hgd_det.distill.terms.hgd import HGD
from hgd_det.testing import make_lesson, make_maps, make_spec

pytestmark = pytest.mark.thorough

SIZES = (8, 5, 2, 1)
BOXES = [[[10, 20, 120, 200], [150, 150, 299, 290]], [], [[0, 0, 300, 40]]]


def make_term(student_sizes=SIZES, **options):
    torch.manual_seed(3)
    term = HGD(**options)
    student, teacher = ({f'neck[{i}]': (c, s) for i, s in enumerate(sizes)}
                        for c, sizes in ((3, student_sizes), (4, SIZES)))
    term.setup(make_spec(student, teacher))
    for parameter in term.parameters():
        torch.nn.init.normal_(parameter)
    return term


def learned(term, launched, dtype=torch.float32, student_sizes=SIZES, layout=torch.contiguous_format):
    """The term's values, and the gradients of maps and parameters."""
    student, teacher = ({tap: x.detach().to(dtype).contiguous(memory_format=layout).requires_grad_()
                         for tap, x in make_maps(c, sizes, 3, seed=c).items()}
                        for c, sizes in ((3, student_sizes), (4, SIZES)))
    with torch.no_grad():
        teacher['neck[0]'][:, :, 2:4] = 0       # dead cells
    lesson = make_lesson(student, teacher, boxes=BOXES)
    term.double() if dtype == torch.float64 else term.float()
    term.zero_grad()
    with as_if_launched(launched):
        values = term(lesson)
        (values['loss'] * 3).backward()
    assert all(x.grad is None for x in teacher.values())
    return ({k: v.detach() for k, v in values.items()}, [x.grad for x in student.values()],
            [p.grad.clone() for p in term.parameters() if p.grad is not None])


OPTIONS = [
    {}, dict(distance='l2'), dict(distance='l2', l2_reduce='mean'), dict(macro='focal'),
    dict(macro='focal', detach_weights=False), dict(macro='attention'), dict(macro='none', micro='none'),
    dict(macro='mean', micro='variance'), dict(macro='variance', micro='mean', detach_weights=False),
    dict(stat_norm='rms', micro='variance'), dict(zero='keep'), dict(empty='uniform'), dict(mask='center'),
    dict(mask='area', zero='keep', empty='uniform'), dict(focal='intent', macro='focal')]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
@pytest.mark.parametrize('sizes', [SIZES, (16, 5, 2, 1)], ids=['equal', 'resized'])
def test_all_stages_at_once_say_and_teach_what_they_do_one_by_one(options, sizes):
    unmatched = dict(taps=[dict(student=f'neck[{i}]', teacher=f'neck[{i}]') for i in range(len(SIZES))])
    term = make_term(sizes, **options, **unmatched)
    plain, whole = (learned(term, launched, student_sizes=sizes) for launched in (False, True))
    torch.testing.assert_close(whole, plain, rtol=1e-4, atol=1e-5)
    assert plain[0]['loss'] > 0


def test_in_double_precision_they_agree_to_rounding():
    for options in OPTIONS[:4]:
        term = make_term(**options)
        torch.testing.assert_close(*(learned(term, launched, torch.float64) for launched in (True, False)),
                                   rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('distance', ['cosine', 'l2'])
def test_half_precision_maps_are_compared_as_they_come_and_summed_in_float32(dtype, distance):
    term = make_term(distance=distance)
    values, maps, parameters = learned(term, True, dtype, layout=torch.channels_last)
    exact = learned(term, False)
    assert values['loss'].dtype == torch.float32 and all(g.dtype == dtype for g in maps)
    assert all(g.is_contiguous(memory_format=torch.channels_last) for g in maps)
    assert values['loss'] == pytest.approx(exact[0]['loss'].item(), rel=0.02)
    for mine, wanted in zip([*maps, *parameters], [*exact[1], *exact[2]], strict=True):
        if wanted.norm() > 1e-6:
            assert torch.cosine_similarity(mine.float().flatten(), wanted.flatten(), 0) > 0.99


def test_backward_may_run_twice_and_without_a_gradient_nothing_is_kept():
    term, maps = make_term(), make_maps(3, SIZES, 3)
    lesson = make_lesson(maps, make_maps(4, SIZES, 3, seed=1), boxes=BOXES)
    with as_if_launched():
        loss = term(lesson)['loss']
        once = torch.autograd.grad(loss, list(maps.values()), retain_graph=True)
        again = torch.autograd.grad(2 * loss, list(maps.values()))
        torch.testing.assert_close(again, tuple(2 * g for g in once))
        with torch.no_grad():
            assert not term(lesson)['loss'].requires_grad


@pytest.mark.parametrize('rule', ['overlap', 'center', 'area'])
def test_the_masks_of_all_sizes_are_those_of_each(rule):
    generator = torch.Generator().manual_seed(0)
    corner, side = torch.rand(2, 40, 2, generator=generator) * 150
    boxes = torch.cat([corner, corner + side], 1)
    boxes = [boxes[:20], boxes[20:21].round(), boxes[:0], boxes[21:]]
    sizes, shape = ((38, 38), (7, 19), (1, 1), (3, 2)), (300, 280)
    found = box_masks(*pad_boxes(boxes), sizes, shape, rule)
    for part, size in zip(found.split([h * w for h, w in sizes], 1), sizes, strict=True):
        assert torch.equal(part.view(-1, *size), box_mask(boxes, size, shape, rule))
    assert not box_masks(*pad_boxes([boxes[2]] * 2), sizes, shape, rule).any()
