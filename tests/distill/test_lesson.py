from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import hgd_det  # noqa: F401  (makes mmdet importable)
from hgd_det.distill.lesson import Targets, hard_negatives, mean_count
from hgd_det.errors import UserError
from hgd_det.testing import make_batch, make_lesson, tiny_ssd


def lesson_of(cls, labels, **more):
    return make_lesson(student_head=(cls, torch.zeros(*cls.shape[:2], 4)), labels=labels, **more)


def ssd_head_step(objects: tuple[int, ...]):
    """One loss computation of a real SSD head: its losses, raw scores and targets."""
    from mmdet.registry import MODELS

    import hgd_det.models  # noqa: F401
    from hgd_det.distill.heads import Watching
    torch.manual_seed(0)
    config = tiny_ssd()
    head = MODELS.build(dict(config['bbox_head'], train_cfg=config['train_cfg']))
    for conv in head.cls_convs:
        torch.nn.init.normal_(conv[0].weight, std=0.2)
    maps = [torch.randn(len(objects), channels, size, size)
            for channels, size in zip(head.in_channels, (12, 6, 3, 1), strict=True)]
    samples = make_batch(len(objects), objects=objects)['data_samples']
    with Watching(SimpleNamespace(bbox_head=head)) as spy:
        losses = head.loss_by_feat(*head(maps), [s.gt_instances for s in samples],
                                   [s.metainfo for s in samples],
                                   [s.ignored_instances for s in samples])
    return losses, spy


def test_the_hard_region_is_the_set_that_ssds_own_loss_uses():
    losses, spy = ssd_head_step((2, 4))
    cls, targets = spy.output().cls, spy.targets()
    region = targets.positive | hard_negatives(cls, targets, spy.neg_pos_ratio)
    each = F.cross_entropy(cls[region], targets.labels[region], reduction='sum')
    assert (targets.positive.sum(1) > 0).all()
    assert (region.sum(1) == 4 * targets.positive.sum(1)).all()
    assert torch.allclose(each / targets.num_positive, sum(losses['loss_cls']), rtol=1e-5)


def test_one_hot_teacher_scores_turn_the_soft_loss_into_ssds_own():
    from hgd_det.distill.terms.soft import SoftLoss
    losses, spy = ssd_head_step((3, 1))
    cls, labels = spy.output().cls, spy.targets().labels
    teacher = (F.one_hot(labels, 4) - 1.0) * 1e4
    lesson = lesson_of(cls, labels, teacher_head=(teacher, torch.zeros(*labels.shape, 4)))
    soft = SoftLoss(mu=0.0, background_weight=1.0)(lesson)['loss']
    assert torch.allclose(soft, sum(losses['loss_cls']), rtol=1e-5)


def test_an_image_without_objects_gives_no_anchor():
    losses, spy = ssd_head_step((2, 0))
    region = spy.targets().positive | hard_negatives(spy.output().cls, spy.targets())
    assert region[0].any() and not region[1].any() and losses['loss_cls'][1].item() == 0


def test_anchors_of_weight_zero_are_never_mined():
    labels, weights = torch.full((1, 40), 3), torch.ones(1, 40)
    labels[:, :2], weights[:, 6:] = 1, 0
    lesson = lesson_of(torch.randn(1, 40, 4), labels, label_weights=weights)
    assert lesson.region('hard').nonzero()[:, 1].tolist() == list(range(6))


def test_with_sigmoid_scores_the_hardest_background_is_the_one_that_looks_most_like_an_object():
    cls = torch.full((1, 9, 3), -5.0)
    cls[0, 4, 1], cls[0, 6, 0], cls[0, 8, 2] = 3, 2, 1
    labels = torch.full((1, 9), 3)
    labels[0, 0] = 2
    lesson = lesson_of(cls, labels, num_classes=3)
    assert lesson.region('hard').nonzero()[:, 1].tolist() == [0, 4, 6, 8]


def test_hard_negatives_survive_scores_saturated_in_half_precision():
    cls = torch.full((2, 30, 4), -1e4, dtype=torch.float16)
    cls[..., 1] = 1e4
    labels = torch.full((2, 30), 3)
    labels[:, 0] = 1
    assert lesson_of(cls, labels).region('hard').sum(1).tolist() == [4, 4]


def test_level_anchors_are_the_anchors_cell_by_cell():
    anchors = torch.arange(4 * 14.).view(14, 4)
    cls = torch.zeros(1, 14, 4)
    lesson = lesson_of(cls, torch.full((1, 14), 3), anchors=anchors, levels=((2, 3, 2), (1, 1, 2)))
    first, second = lesson.level_anchors
    assert first.shape == (2, 3, 2, 4) and second.shape == (1, 1, 2, 4)
    assert torch.equal(first[1, 2, 0], anchors[10]) and torch.equal(second[0, 0, 1], anchors[13])


def test_counts_are_divisors_and_never_below_one():
    assert mean_count(torch.tensor(0)) == 1 and mean_count(torch.tensor(7)) == 7
    labels = torch.tensor([[0, 3, 2, 3]])
    weights = torch.tensor([[1., 1, 0, 1]])
    boxes = torch.zeros(1, 4, 4)
    assert Targets(labels, weights, boxes, boxes, 3).num_positive == 1


def test_an_unknown_region_is_refused():
    with pytest.raises(UserError, match='choose one of pos, hard, all'):
        lesson_of(torch.zeros(1, 3, 4), torch.full((1, 3), 3)).region('easy')
