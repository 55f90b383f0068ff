"""MaskGuided: maps first, detection afterwards."""
import pytest
import torch

import hgd_det  # noqa: F401
from hgd_det.distill.boxes import crops
from hgd_det.distill.registry import TERMS
from hgd_det.distill.schedule import Progress, Schedule
from hgd_det.distill.terms.mask_guided import MaskGuided
from hgd_det.errors import UserError
from hgd_det.testing import make_head_spec, make_lesson, make_spec

from mmdet.registry import TASK_UTILS  # isort: skip
from mmengine.structures import InstanceData  # isort: skip

SIZES, SIDE, C = (8, 4, 1), 64, 3
STUDENT = {f'neck[{i}]': (c, s) for i, (c, s) in enumerate(zip((3, 2, 4), SIZES, strict=True))}
TEACHER = {f'neck[{i}]': (c, s) for i, (c, s) in enumerate(zip((5, 6, 4), SIZES, strict=True))}
LEVELS = [(8, 8, 2), (4, 4, 2), (1, 1, 2)]
CODER = dict(type='DeltaXYWHBBoxCoder', target_stds=(.1, .1, .2, .2))


def some_anchors():
    levels = []
    for side, (h, w, _) in zip((14., 28., 52.), LEVELS, strict=True):
        step = SIDE / w
        for y in range(h):
            for x in range(w):
                cx, cy = (x + .5) * step, (y + .5) * step
                for wide in (side / 2, side * .65):
                    levels.append([cx - wide, cy - side / 2, cx + wide, cy + side / 2])
    return torch.tensor(levels)


ANCHORS = some_anchors()
M = len(ANCHORS)


def assign(boxes):
    """mmdet's SSD assignment: labels (B,M), encoded targets (B,M,4), the object of each anchor."""
    assigner = TASK_UTILS.build(dict(type='MaxIoUAssigner', pos_iou_thr=.5, neg_iou_thr=.5,
                                     min_pos_iou=0., ignore_iof_thr=-1, gt_max_assign_all=False))
    coder = TASK_UTILS.build(CODER)
    labels, targets = torch.full((len(boxes), M), C), torch.zeros(len(boxes), M, 4)
    owner = torch.full((len(boxes), M), -1)
    for b, image in enumerate(boxes):
        if len(image):
            image = torch.tensor(image)
            result = assigner.assign(InstanceData(priors=ANCHORS), InstanceData(
                bboxes=image, labels=torch.zeros(len(image), dtype=torch.long)))
            owner[b] = result.gt_inds - 1
            own = owner[b] >= 0
            labels[b, own] = 0
            targets[b, own] = coder.encode(ANCHORS[own], image[owner[b, own]])
    return labels, targets, owner


# a small object inside a large one, and one that barely fits any anchor
BOXES = [[(6., 6, 60, 60), (10., 10, 24, 24), (40., 2, 44, 6)], [(20., 20, 50, 46)]]


def make(boxes=BOXES, seed=0, dtype=torch.float, teacher=TEACHER, limits=None, project=None,
         **options):
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    batch = len(boxes)
    maps = [{tap: torch.randn(batch, c, s, s, generator=g, dtype=dtype)
             for tap, (c, s) in spec.items()} for spec in (STUDENT, teacher)]
    for x in maps[0].values():
        x.requires_grad_()
    labels, targets, owner = assign(boxes)
    if limits:
        targets = targets.clamp(*limits)
    head = (torch.zeros(batch, M, C + 1), torch.zeros(batch, M, 4))
    lesson = make_lesson(*maps, boxes=boxes, input_shape=(SIDE, SIDE), student_head=head,
                         levels=LEVELS, labels=labels, box_targets=targets, anchors=ANCHORS,
                         num_classes=C)
    term = MaskGuided(**options)
    term.setup(make_spec(STUDENT, teacher, input_size=SIDE,
                         head=make_head_spec(ANCHORS, C, 4, project)))
    return term.to(dtype), lesson, owner


def level_of(anchor):
    return 0 if anchor < 128 else 1 if anchor < 160 else 2


def reference(term, lesson, owner):
    """The docstring: one map, one object, one crop at a time."""
    whole, found = 0., []
    for i, (pair, adapter) in enumerate(zip(term.pairs, term.adapters.values(), strict=True)):
        student = lesson.student.maps[pair.student.tap]
        teacher = lesson.teacher.maps[pair.teacher.tap]
        adapted = torch.einsum('oc,bchw->bohw', adapter.weight[:, :, 0, 0], student) \
            + adapter.bias[:, None, None]
        channels = teacher.shape[1]
        cells = [(((adapted[b, :, y, x] - teacher[b, :, y, x]) ** 2).sum() / channels).item()
                 for b in range(len(student)) for y in range(SIZES[i]) for x in range(SIZES[i])]
        whole += sum(cells) / len(cells)
        for b in range(len(student)):
            own = {g.item() for a, g in enumerate(owner[b]) if g >= 0 and level_of(a) == i}
            for g in own:
                box = [lesson.boxes[b][g:g + 1]]
                u = crops(adapted[b:b + 1], box, (SIDE, SIDE))[0]
                v = crops(teacher[b:b + 1], box, (SIDE, SIDE))[0]
                found.append(((u - v) ** 2).sum(0).mean().item() / channels)
    return whole, sum(found) / max(1, len(found)), len(found)


def test_the_loss_equals_a_slow_reference_under_mmdets_own_assignment():
    term, lesson, owner = make(beta=.7)
    values = term(lesson)
    whole, local, count = reference(term, lesson, owner)
    assert count == values['crops'] >= 4
    assert values['whole'].item() == pytest.approx(whole, rel=1e-5)
    assert values['local'].item() == pytest.approx(local, rel=1e-4)
    assert values['loss'].item() == pytest.approx(whole + .7 * local, rel=1e-4)


def test_an_object_is_cropped_where_the_assignment_gave_it_an_anchor_and_nowhere_else():
    term, lesson, owner = make()
    for size, images in term._objects(lesson).items():
        for b, boxes in enumerate(images):
            wanted = {g.item() for a, g in enumerate(owner[b])
                      if g >= 0 and SIZES[level_of(a)] == size[0]}
            assert boxes.tolist() == [list(BOXES[b][g]) for g in sorted(wanted)]
    assert len(set(owner[0].tolist()) - {-1}) == 3     # the small ones own their forced anchors


def test_targets_clamped_by_a_distribution_head_still_find_their_object():
    # the small one's clamped target is nearer to the other's encoding than to its own, unclamped
    boxes = [[(22., 22, 34, 34), (19.5, 27.5, 20.5, 28.5)]]
    term, lesson, owner = make(boxes, limits=(-2, 2 - 1e-3), project=torch.linspace(-2, 2, 9))
    assert set(owner[0].tolist()) == {-1, 0, 1}
    finest = term._objects(lesson)[8, 8][0]
    assert finest.tolist() == [list(box) for box in boxes[0]]


def test_without_the_local_part_it_is_a_hint_divided_by_the_teachers_channels():
    term, lesson, _ = make(beta=0)
    wanted = 0.
    for pair, adapter in zip(term.pairs, term.adapters.values(), strict=True):
        teacher = lesson.teacher.maps[pair.teacher.tap]
        error = (adapter(lesson.student.maps[pair.student.tap]) - teacher).square().sum(1)
        wanted += error.mean() / teacher.shape[1]
    assert term(lesson)['loss'].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_equal_maps_and_no_adapter_leave_nothing_to_learn():
    term, lesson, _ = make(teacher=STUDENT, adapter='none')
    for tap, x in lesson.student.maps.items():
        lesson.teacher.maps[tap] = x.detach().clone()
    assert term(lesson)['loss'].item() == 0


def test_constant_maps_have_a_closed_form_value():
    term, lesson, _ = make(teacher=STUDENT, adapter='none', beta=1.)
    for side, value in ((lesson.student, 1.), (lesson.teacher, 3.)):
        for tap, x in side.maps.items():
            side.maps[tap] = torch.full_like(x, value)
    values = term(lesson)     # (3-1)^2 per channel: 4 on each of three levels, 4 in every crop
    assert values['whole'].item() == pytest.approx(12)
    assert values['local'].item() == pytest.approx(4)


def test_the_gradient_is_right_and_reaches_student_and_adapters_only():
    term, lesson, _ = make(dtype=torch.double)
    for x in lesson.teacher.maps.values():
        x.requires_grad_()
    term(lesson)['loss'].backward()
    assert all(x.grad is None for x in lesson.teacher.maps.values())
    assert all(x.grad.abs().sum() > 0 for x in lesson.student.maps.values())
    assert all(p.grad is not None for p in term.parameters())
    tap = 'neck[1]'

    def loss_of(x):
        lesson.student.maps[tap] = x
        return term(lesson)['loss']
    x = lesson.student.maps[tap].detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss_of, x, fast_mode=True)


@pytest.mark.parametrize('boxes', [[[], []], [[]], [[(20., 20, 50, 46)], []]],
                         ids=['none or only ignored', 'one image', 'one is empty'])
def test_images_without_objects_keep_the_global_part(boxes):
    term, lesson, owner = make(boxes)
    values = term(lesson)
    values['loss'].backward()
    whole, local, count = reference(term, lesson, owner)
    assert values['loss'].item() == pytest.approx(whole + local, rel=1e-4)
    assert values['crops'] == count
    assert all(torch.isfinite(p.grad).all() for p in term.parameters())


def test_the_order_of_the_images_does_not_matter():
    term, lesson, _ = make()
    swapped = make_lesson({k: v.flip(0) for k, v in lesson.student.maps.items()},
                          {k: v.flip(0) for k, v in lesson.teacher.maps.items()},
                          boxes=BOXES[::-1], input_shape=(SIDE, SIDE), levels=LEVELS,
                          anchors=ANCHORS, num_classes=C,
                          student_head=(torch.zeros(2, M, C + 1), torch.zeros(2, M, 4)),
                          labels=lesson.targets.labels.flip(0),
                          box_targets=lesson.targets.boxes.flip(0))
    assert term(swapped)['loss'].item() == pytest.approx(term(lesson)['loss'].item(), rel=1e-5)


def test_half_precision_maps_are_computed_in_single():
    term, lesson, _ = make()
    for side in (lesson.student, lesson.teacher):
        for tap, x in side.maps.items():
            side.maps[tap] = (300 * x.detach()).half().requires_grad_()     # squares beyond 65504
    value = term(lesson)['loss']
    value.backward()
    assert value.dtype == torch.float and torch.isfinite(value)


def test_maps_of_a_teacher_with_another_input_size_are_resized():
    teacher = {tap: (c, 2 * s) for tap, (c, s) in TEACHER.items()}
    term, lesson, _ = make()
    lesson.teacher.maps.update({tap: torch.randn(2, c, s, s) for tap, (c, s) in teacher.items()})
    assert torch.isfinite(term(lesson)['loss'])


def test_imitation_without_detection_lasts_three_tenths_of_the_run():
    schedule = Schedule(**MaskGuided.schedule)
    assert schedule.detection == 0 and schedule.factor(Progress(0, 100)) == 1
    for total in (7, 100, 62003):
        end = round(.3 * total)
        assert [schedule.factor(Progress(i, total)) for i in (end - 1, end)] == [1, 0]


def test_impossible_set_ups_are_refused_saying_how_to_go_on():
    for options, word in ((dict(beta=-1), 'beta'), (dict(crop=0), 'crop'),
                          (dict(adapter='x'), 'adapter')):
        with pytest.raises(UserError, match=word):
            TERMS.build(dict(type='MaskGuided', **options))
    spec = make_spec(STUDENT, TEACHER, input_size=SIDE, head=make_head_spec(None, C))
    with pytest.raises(UserError, match='beta=0'):
        MaskGuided().setup(spec)
    MaskGuided(beta=0).setup(spec)
    spec = make_spec(STUDENT, TEACHER, input_size=SIDE, head=make_head_spec(ANCHORS, C, decoded=True))
    with pytest.raises(UserError, match='reg_decoded_bbox'):
        MaskGuided().setup(spec)
