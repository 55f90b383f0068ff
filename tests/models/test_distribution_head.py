"""DistributionSSDHead: bins in, boxes out, and everything between is SSDHead's."""
import math

import pytest
import torch

from hgd_det.compat import mmdet_fixes
from hgd_det.errors import UserError
from hgd_det.models.distribution_head import DistributionSSDHead, integral

from mmdet.models.dense_heads import SSDHead  # isort: skip
from mmdet.registry import MODELS  # isort: skip
from mmengine.config import ConfigDict  # isort: skip
from mmengine.structures import InstanceData  # isort: skip

mmdet_fixes.apply()     # mmdet's own SSDHead cannot predict without
CHANNELS, SIZES = (4, 6, 3), (12, 6, 1)


def build(kind='DistributionSSDHead', **options):
    torch.manual_seed(0)
    head = MODELS.build(dict(
        type=kind, num_classes=3, in_channels=CHANNELS,
        anchor_generator=dict(type='SSDAnchorGenerator', scale_major=False, strides=[8, 16, 96],
                              ratios=[[2], [2, 3], [2]], min_sizes=[16, 30, 64],
                              max_sizes=[30, 64, 86]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.] * 4,
                        target_stds=[.1, .1, .2, .2]),
        train_cfg=ConfigDict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=.5, neg_iou_thr=.5, min_pos_iou=0.,
                          ignore_iof_thr=-1, gt_max_assign_all=False),
            sampler=dict(type='PseudoSampler'), smoothl1_beta=1., allowed_border=-1, pos_weight=-1,
            neg_pos_ratio=3),
        test_cfg=ConfigDict(nms_pre=1000, nms=dict(type='nms', iou_threshold=.45), min_bbox_size=0,
                            score_thr=.02, max_per_img=50),
        **options))
    head.init_weights()
    return head


def features(batch=2, scale=1.0):
    generator = torch.Generator().manual_seed(1)
    return tuple(scale * torch.randn(batch, c, s, s, generator=generator)
                 for c, s in zip(CHANNELS, SIZES, strict=True))


def objects(*images):
    return [InstanceData(bboxes=torch.tensor(boxes, dtype=torch.float).reshape(-1, 4),
                         labels=torch.zeros(len(boxes), dtype=torch.long)) for boxes in images]


def metas(batch=2):
    return [dict(img_shape=(96, 96), pad_shape=(96, 96), scale_factor=(1., 1.))] * batch


TWO = objects([(10, 10, 40, 40), (50, 20, 90, 80)], [(5, 30, 60, 90)])


def test_the_integral_is_the_expectation_of_the_bins():
    bins = torch.arange(-8., 9)
    assert integral(torch.zeros(17), bins).item() == pytest.approx(0, abs=1e-6)
    peak = torch.zeros(17)
    peak[10] = math.log(16)     # y = 2 with probability 1/2
    assert integral(peak, bins).item() == pytest.approx(.9375)
    two = torch.full((17,), -1e4)
    two[8], two[9] = math.log(.75), math.log(.25)
    assert integral(two, bins).item() == pytest.approx(.25)
    six = torch.zeros(6)
    six[4] = math.log(5)
    assert integral(six, torch.arange(6.)).item() == pytest.approx(3.1)


def test_the_integral_survives_saturation_and_half_precision():
    bins = torch.linspace(-8, 8, 17)
    wild = torch.tensor([6e4] + [-6e4] * 16, dtype=torch.half)
    assert integral(wild, bins).item() == -8 and integral(wild, bins).dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16):
        value = integral(torch.randn(3, 4, 17), bins)
    assert value.dtype == torch.float32
    assert torch.autograd.gradcheck(lambda z: integral(z, bins.double()),
                                    torch.randn(2, 17, dtype=torch.double, requires_grad=True))


@pytest.mark.parametrize('n', [16, 5])
def test_predictions_equal_those_of_a_plain_head_fed_with_the_decoded_deltas(n):
    head, plain = build(n=n), build('SSDHead')
    cls, logits = head(features(scale=3.0))
    assert [tuple(x.shape) for x in logits] == [
        (2, a * 4 * (n + 1), s, s) for a, s in zip((4, 6, 4), SIZES, strict=True)]
    deltas = []
    for level in logits:        # by loop: channel = (anchor * 4 + delta) * (n+1) + bin
        batch, channels, h, w = level.shape
        out = torch.zeros(batch, channels // (n + 1), h, w)
        for k in range(channels // (n + 1)):
            p = level[:, k * (n + 1):(k + 1) * (n + 1)].softmax(1)
            out[:, k] = sum(p[:, b] * (-8 + 16 * b / n) for b in range(n + 1))
        deltas.append(out)
    for mine, wanted in zip(head.to_deltas(logits), deltas, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=2e-5)
    exact = head.to_deltas(logits)
    mine = head.predict_by_feat(cls, logits, batch_img_metas=metas())
    theirs = plain.predict_by_feat(cls, exact, batch_img_metas=metas())
    for a, b in zip(mine, theirs, strict=True):
        assert len(a) > 0
        assert torch.equal(a.bboxes, b.bboxes) and torch.equal(a.scores, b.scores)
        assert torch.equal(a.labels, b.labels)


def test_losses_are_those_of_a_plain_head_on_the_deltas_plus_dfl_by_hand():
    head, plain = build(), build('SSDHead')
    cls, logits = head(features())
    losses = head.loss_by_feat(cls, logits, TWO, metas())
    wanted = plain.loss_by_feat(cls, head.to_deltas(logits), TWO, metas())
    assert set(losses) == {'loss_cls', 'loss_bbox', 'loss_dfl'}
    for key in wanted:
        torch.testing.assert_close(torch.stack(list(losses[key])).flatten(),
                                   torch.stack(list(wanted[key])).flatten())

    anchors, valid = head.get_anchors([(s, s) for s in SIZES], metas(), device='cpu')
    labels, _, targets, _, count = head.get_targets(anchors, valid, TWO, metas())
    labels, targets = torch.cat(labels, 1), torch.cat(targets, 1)
    flat = torch.cat([x.permute(0, 2, 3, 1).reshape(2, -1, 4, 17) for x in logits], 1)
    dfl = [0., 0.]
    for b, a in (labels < 3).nonzero().tolist():
        for d in range(4):
            r = targets[b, a, d].item() + 8
            k = math.floor(r)
            log_p = flat[b, a, d].log_softmax(0)
            dfl[b] -= ((k + 1 - r) * log_p[k] + (r - k) * log_p[k + 1]).item()
    assert (labels < 3).sum() == count > 0
    for mine, wanted in zip(losses['loss_dfl'], dfl, strict=True):
        assert mine.item() == pytest.approx(.25 * wanted / int(count), rel=1e-5)


def single(head, logits, target):
    """(smooth L1, DFL) of one positive anchor, averaged over its four equal deltas."""
    losses = head.box_losses(logits.repeat(4).view(1, 1, -1), torch.full((1, 1, 4), target),
                             torch.ones(1, 1, 4), avg_factor=1.0)
    return losses['loss_bbox'].item() / 4, losses['loss_dfl'].item() / 4


def test_dfl_has_its_closed_form_values():
    head = build(dfl_weight=1.0)
    two = torch.full((17,), -1e4)
    two[8], two[9] = math.log(.75), math.log(.25)
    smooth, dfl = single(head, two, .25)
    assert smooth == pytest.approx(0, abs=1e-6) and dfl == pytest.approx(.562335, abs=1e-5)
    smooth, dfl = single(head, torch.zeros(17), .25)
    assert smooth == pytest.approx(.25 ** 2 / 2) and dfl == pytest.approx(2.833213, abs=1e-5)


def test_targets_beyond_the_bins_are_clamped_and_finite():
    head = build()
    cls, logits = head(features())
    tiny = objects([(47, 47, 47.5, 47.5)], [(0, 0, 96, 96)])   # forced matches: log(.5 / 21) / .2
    anchors, valid = head.get_anchors([(s, s) for s in SIZES], metas(), device='cpu')
    targets = torch.cat(head.get_targets(anchors, valid, tiny, metas())[2], 1)
    assert targets.min() == -8 and targets.max() <= 8 - 1e-3
    losses = head.loss_by_feat(cls, logits, tiny, metas())
    assert all(torch.isfinite(v).all() for values in losses.values() for v in values)


@pytest.mark.parametrize('images', [([], []), ([(10, 10, 40, 40)], [])], ids=['none', 'one'])
def test_images_without_objects_have_a_loss_and_a_gradient(images):
    head = build()
    x = tuple(f.requires_grad_() for f in features())
    losses = head.loss_by_feat(*head(x), objects(*images), metas())
    total = sum(sum(v).sum() for v in losses.values())
    total.backward()
    assert torch.isfinite(total) and all(torch.isfinite(f.grad).all() for f in x)
    assert losses['loss_dfl'][1] == 0 and losses['loss_bbox'][1] == 0


def test_training_moves_the_expectation_to_the_target():
    head = build(n=5)
    x = features()
    optimizer = torch.optim.SGD(head.parameters(), lr=.1)
    history = []
    for _ in range(12):
        losses = head.loss_by_feat(*head(x), TWO, metas())
        total = sum(sum(v).sum() for v in losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(sum(losses['loss_bbox']).item())
    assert history[-1] < .9 * history[0]


@pytest.mark.parametrize('options', [
    {}, dict(use_depthwise=True, feat_channels=8, stacked_convs=1)])
def test_only_the_last_regression_convolutions_differ_from_a_plain_head(options):
    head, plain = build(n=5, **options), build('SSDHead', **options)
    mine, theirs = head.state_dict(), plain.state_dict()
    assert list(mine) == list(theirs)   # the bins are not saved
    for key in theirs:
        last = key.startswith('reg_convs') and key.rsplit('.', 1)[0] in {
            f'reg_convs.{i}.{len(convs) - 1}' for i, convs in enumerate(plain.reg_convs)}
        assert len(mine[key]) == len(theirs[key]) * (6 if last else 1), key
    assert isinstance(head, SSDHead) and head(features())[1][0].shape[1] == 4 * 4 * 6


def test_the_bins_follow_the_head_to_a_dtype_and_through_a_checkpoint():
    head, other = build(n=7, lo=-4, hi=3), build(n=7, lo=-4, hi=3)
    other.load_state_dict(head.state_dict())
    assert head.project.tolist() == pytest.approx(list(range(-4, 4)))
    x = features()
    head.double(), other.double()
    for a, b in zip(head(tuple(f.double() for f in x))[1], other(tuple(f.double() for f in x))[1],
                    strict=True):
        assert torch.equal(a, b)
    assert head.project.dtype == torch.float64


@pytest.mark.parametrize('options, word', [
    (dict(n=0), 'n=0'), (dict(n=2.5), 'n=2.5'), (dict(lo=3, hi=3), 'lo=3'),
    (dict(dfl_weight=-1), 'dfl_weight'), (dict(reg_decoded_bbox=True), 'reg_decoded_bbox')])
def test_impossible_options_are_refused_by_name(options, word):
    with pytest.raises(UserError, match=word):
        DistributionSSDHead(num_classes=3, **options)
