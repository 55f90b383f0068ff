"""Mimic: features inside the objects' and the teacher's boxes."""
import math

import pytest
import torch

from hgd_det.compat import mmdet_fixes
from hgd_det.distill.boxes import crops
from hgd_det.distill.heads import anchors_of, flatten
from hgd_det.distill.registry import TERMS
from hgd_det.distill.terms.mimic import Mimic
from hgd_det.errors import UserError
from hgd_det.testing import make_head_spec, make_lesson, make_spec

from mmdet.registry import MODELS  # isort: skip
from mmengine.config import ConfigDict  # isort: skip

mmdet_fixes.apply()
SIZES, SIDE, C = (12, 6, 1), 96, 3
STUDENT = {f'neck[{i}]': (c, s) for i, (c, s) in enumerate(zip((3, 2, 4), SIZES, strict=True))}
TEACHER = {f'neck[{i}]': (c, s) for i, (c, s) in enumerate(zip((5, 6, 4), SIZES, strict=True))}


def build_head(kind='SSDHead', **options):
    torch.manual_seed(0)
    return MODELS.build(dict(
        type=kind, num_classes=C, in_channels=(5, 6, 4),
        anchor_generator=dict(type='SSDAnchorGenerator', scale_major=False, strides=[8, 16, 96],
                              ratios=[[2], [2, 3], [2]], min_sizes=[14, 30, 64],
                              max_sizes=[30, 64, 86]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.] * 4,
                        target_stds=[.1, .1, .2, .2]),
        test_cfg=ConfigDict(nms_pre=1000, nms=dict(type='nms', iou_threshold=.45), min_bbox_size=0,
                            score_thr=.3, max_per_img=2000), **options))


HEAD = build_head()
OUT = flatten(HEAD, HEAD([torch.zeros(1, c, s, s) for c, s in TEACHER.values()]))
ANCHORS = anchors_of(HEAD, OUT.levels, 'cpu')
M = len(ANCHORS)
BOXES = [[(6., 6, 90, 88), (10., 10, 24, 26)],
         [(20., 20, 60, 56), (50., 3, 71, 40), (0., 0, 96, 96)]]


def make(boxes=BOXES, seed=0, dtype=torch.float, teacher=TEACHER, teacher_head=None, project=None,
         teacher_anchors=None, anchors=ANCHORS, **options):
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    batch = len(boxes)
    maps = [{tap: torch.randn(batch, c, s, s, generator=g, dtype=dtype)
             for tap, (c, s) in spec.items()} for spec in (STUDENT, teacher)]
    for x in maps[0].values():
        x.requires_grad_()
    quiet = torch.zeros(batch, M, C + 1)
    quiet[..., -1] = 20.
    lesson = make_lesson(*maps, boxes=boxes, input_shape=(SIDE, SIDE), levels=OUT.levels,
                         anchors=anchors, student_head=(quiet, torch.zeros(batch, M, 4)),
                         teacher_head=teacher_head or (quiet, torch.zeros(batch, M, 4)))
    term = Mimic(**options)
    theirs = make_head_spec(ANCHORS if teacher_anchors is None else teacher_anchors, C, 4, project)
    term.setup(make_spec(STUDENT, teacher, input_size=SIDE, head=make_head_spec(anchors, C),
                         teacher_head=theirs))
    return term.to(dtype), lesson


def reference(term, lesson, boxes):
    """The docstring, box by box. ``boxes``: per image."""
    levels = []
    for part in ANCHORS.split([h * w * a for h, w, a in OUT.levels]):
        logs = [math.log(math.sqrt((x2 - x1) * (y2 - y1))) for x1, y1, x2, y2 in part.tolist()]
        levels.append(sum(logs) / len(logs))
    total, count = 0., 0
    for b, image in enumerate(boxes):
        for x1, y1, x2, y2 in image:
            size = math.log(math.sqrt((x2 - x1) * (y2 - y1)))
            i = min(range(3), key=lambda k: abs(levels[k] - size))
            pair = term.pairs[i]
            adapter = term.adapters[pair.name]
            box = [torch.tensor([[x1, y1, x2, y2]], dtype=torch.float)]
            student = lesson.student.maps[pair.student.tap][b:b + 1]
            u = crops(lesson.teacher.maps[pair.teacher.tap][b:b + 1], box, (SIDE, SIDE))
            v = crops(adapter(student), box, (SIDE, SIDE))
            total += ((u - v) ** 2).sum().item() / u[0].numel()
            count += 1
    return total / (2 * max(1, count)), count


def test_the_loss_equals_a_slow_reference_on_the_objects():
    term, lesson = make(teacher_boxes=False)
    wanted, count = reference(term, lesson, BOXES)
    values = term(lesson)
    assert values['boxes'] == count == 5
    assert values['loss'].item() == pytest.approx(wanted, rel=1e-5)


def test_it_has_its_closed_form_value():
    """One crop, one channel, teacher 3, student 1: (3-1)^2 / 2."""
    spec = {'neck[0]': (1, 12), 'neck[1]': (1, 6), 'neck[2]': (1, 1)}
    term, lesson = make([[(20., 20, 60, 56)]], teacher=TEACHER, teacher_boxes=False)
    for side, value in ((lesson.student, 1.), (lesson.teacher, 3.)):
        for tap, (c, s) in spec.items():
            side.maps[tap] = torch.full((1, c, s, s), value)
    term.adapters = torch.nn.ModuleDict({name: torch.nn.Identity() for name in term.adapters})
    assert term(lesson)['loss'].item() == pytest.approx(2.)


def test_duplicating_every_box_changes_nothing():
    term, lesson = make(teacher_boxes=False)
    _, twice = make([image * 2 for image in BOXES], teacher_boxes=False)
    assert term(twice)['boxes'] == 10
    assert term(twice)['loss'].item() == pytest.approx(term(lesson)['loss'].item(), rel=1e-5)


def confident_outputs(head, scale=4.):
    maps = [scale * torch.randn(2, c, s, s, generator=torch.Generator().manual_seed(3))
            for c, s in TEACHER.values()]
    with torch.no_grad():
        return head(maps)


@pytest.mark.parametrize('kind', ['SSDHead', 'DistributionSSDHead'])
def test_the_teachers_detections_are_those_mmdet_would_report(kind):
    head = build_head(kind)
    outputs = confident_outputs(head)
    out = flatten(head, outputs)
    term, lesson = make([[], []], teacher_head=(out.cls, out.reg),
                        project=getattr(head, 'project', None))
    metas = [dict(img_shape=(SIDE, SIDE), scale_factor=(1., 1.))] * 2
    reported = head.predict_by_feat(*outputs, batch_img_metas=metas)
    found = term._detections(lesson)
    for mine, theirs in zip(found, reported, strict=True):
        mine = mine[(mine[:, 2:] > mine[:, :2]).all(1)]     # mmdet drops these before NMS
        assert len(mine) == len(theirs) > 10
        torch.testing.assert_close(mine, theirs.bboxes, rtol=1e-5, atol=1e-3)


def test_objects_come_first_then_detections_by_score_up_to_the_limit():
    head = build_head()
    out = flatten(head, confident_outputs(head))
    term, lesson = make(teacher_head=(out.cls, out.reg), max_boxes=6)
    found = term._detections(lesson)
    for own, seen, boxes in zip(BOXES, found, term._boxes(lesson), strict=True):
        big = [b for b in seen.tolist() if min(b[2] - b[0], b[3] - b[1]) >= 1]
        assert boxes.tolist() == ([list(b) for b in own] + big)[:6]
    wanted, count = reference(term, lesson, [b.tolist() for b in term._boxes(lesson)])
    values = term(lesson)
    assert values['boxes'] == count == 12
    assert values['loss'].item() == pytest.approx(wanted, rel=1e-4)


def test_a_teacher_of_other_anchors_is_decoded_with_its_own():
    other = ANCHORS.clone()
    other[:, [0, 2]] = (other[:, [0, 2]] + 3).clamp(0, 90)
    cls, reg = torch.zeros(1, M, C + 1), torch.zeros(1, M, 4)
    cls[..., -1] = 20.
    cls[0, 700, 1] = 40.
    inside = other[700].clamp(0, SIDE)
    term, lesson = make([[]], teacher_head=(cls, reg), teacher_anchors=other)
    torch.testing.assert_close(term._detections(lesson)[0], inside[None])
    rest = (cls[:, 100:], reg[:, 100:])
    term, lesson = make([[]], teacher_head=rest, teacher_anchors=other[100:])
    assert len(term._detections(lesson)[0]) == 1


def test_equal_maps_and_no_adapter_leave_nothing_to_learn():
    term, lesson = make(teacher=STUDENT, adapter='none', teacher_boxes=False)
    for tap, x in lesson.student.maps.items():
        lesson.teacher.maps[tap] = x.detach().clone()
    assert term(lesson)['loss'].item() == 0


def test_the_gradient_is_right_and_reaches_student_and_adapters_only():
    term, lesson = make(dtype=torch.double, teacher_boxes=False)
    for x in lesson.teacher.maps.values():
        x.requires_grad_()
    term(lesson)['loss'].backward()
    assert all(x.grad is None for x in lesson.teacher.maps.values())
    assert all(x.grad.abs().sum() > 0 for x in lesson.student.maps.values())
    assert all(p.grad.abs().sum() > 0 for p in term.parameters())

    def loss_of(x):
        lesson.student.maps['neck[1]'] = x
        return term(lesson)['loss']
    x = lesson.student.maps['neck[1]'].detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss_of, x, fast_mode=True)


@pytest.mark.parametrize('boxes', [[[], []], [[]], [[(20., 20, 60, 56)], []], [[(5., 5, 5, 60)]]],
                         ids=['none or only ignored', 'one image', 'one is empty', 'no area'])
def test_batches_without_boxes_have_a_zero_with_a_graph(boxes):
    term, lesson = make(boxes)
    values = term(lesson)
    values['loss'].backward()
    solid = [[b for b in image if b[2] > b[0]] for image in boxes]
    wanted, count = reference(term, lesson, solid)
    assert values['loss'].item() == pytest.approx(wanted, rel=1e-5) and values['boxes'] == count
    assert all(torch.isfinite(x.grad).all() for x in lesson.student.maps.values())


def test_the_order_of_the_images_does_not_matter():
    term, lesson = make(teacher_boxes=False)
    _, swapped = make(BOXES[::-1], teacher_boxes=False)
    for side, other in ((lesson.student, swapped.student), (lesson.teacher, swapped.teacher)):
        other.maps.update({tap: x.flip(0) for tap, x in side.maps.items()})
    assert term(swapped)['loss'].item() == pytest.approx(term(lesson)['loss'].item(), rel=1e-5)


def test_saturated_scores_and_half_precision_maps_stay_finite():
    cls, reg = torch.full((2, M, C + 1), -6e4), torch.full((2, M, 4), 6e4)
    cls[:, ::5, 0] = 6e4
    term, lesson = make(teacher_head=(cls.half(), reg.half()))
    for side in (lesson.student, lesson.teacher):
        for tap, x in side.maps.items():
            side.maps[tap] = (300 * x.detach()).half().requires_grad_()     # squares beyond 65504
    value = term(lesson)['loss']
    value.backward()
    assert value.dtype == torch.float and torch.isfinite(value)


def test_without_teacher_boxes_no_head_of_the_teacher_is_asked_for():
    assert 'head' not in Mimic(teacher_boxes=False).needs and 'head' in Mimic().needs


def test_impossible_set_ups_are_refused_saying_how_to_go_on():
    for options, word in ((dict(score=0), 'score'), (dict(iou=1), 'iou'), (dict(crop=0), 'crop'),
                          (dict(max_boxes=0), 'max_boxes'), (dict(adapter='x'), 'adapter')):
        with pytest.raises(UserError, match=word):
            TERMS.build(dict(type='Mimic', **options))
    spec = make_spec(STUDENT, TEACHER, input_size=SIDE, head=make_head_spec(None, C))
    with pytest.raises(UserError, match='anchors'):
        Mimic().setup(spec)
    spec = make_spec(STUDENT, TEACHER, input_size=SIDE, head=make_head_spec(ANCHORS, C),
                     teacher_head=make_head_spec(None, C))
    with pytest.raises(UserError, match='teacher_boxes=False'):
        Mimic().setup(spec)
    Mimic(teacher_boxes=False).setup(spec)
