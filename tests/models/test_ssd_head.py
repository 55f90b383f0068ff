"""BatchedSSDHead: mmdet's losses, gradients and targets, to the last tie."""
import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import hgd_det.registered  # noqa: F401  (mmdet's own SSDHead cannot predict without)
from hgd_det.device import as_if_launched
from hgd_det.distill.heads import Watching
from hgd_det.experiments.benchmarks.launches import Counted
from hgd_det.models import BatchedSSDHead, matching
from hgd_det.testing import make_batch, make_distiller, tiny_ssd, torch_calls, train_step

from mmdet.models.dense_heads import SSDHead  # isort: skip
from mmdet.registry import MODELS  # isort: skip
from mmengine.config import Config, ConfigDict  # isort: skip
from mmengine.registry import init_default_scope  # isort: skip
from mmengine.structures import InstanceData  # isort: skip

init_default_scope('mmdet')

MAPS = (12, 6, 3, 1)
SCALES = {  # base config, sizes of its maps, pixels
    'shapes': ('configs/shapes/_base_/model.py', MAPS, 96),
    'ssd300': ('configs/_base_/models/ssd300_vgg16.py', (38, 19, 10, 5, 3, 1), 300)}


def both_heads(scale='shapes', train_cfg=None, assigner=None, **options):
    """mmdet's head and ours of one configuration."""
    config = copy.deepcopy(Config.fromfile(SCALES[scale][0]).model)
    config.train_cfg.update(train_cfg or {})
    config.train_cfg.assigner.update(assigner or {})
    config.bbox_head.update(train_cfg=config.train_cfg, test_cfg=config.test_cfg, **options)
    theirs, ours = (MODELS.build(config.bbox_head | dict(type=kind))
                    for kind in ('SSDHead', 'BatchedSSDHead'))
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def outputs(head, batch, sizes=MAPS, seed=0, draw=torch.randn):
    generator = torch.Generator().manual_seed(seed)
    return [[draw(batch, a * width, s, s, generator=generator) for a, s in zip(
        head.num_base_priors, sizes, strict=True)] for width in (head.cls_out_channels, 4)]


def coarse(*shape, generator):
    """Logits of so few values that many losses are equal."""
    return torch.randint(0, 2, shape, generator=generator).float()


def objects(counts, size=96, classes=6, seed=0, grid=None):
    """Boxes at random; with ``grid`` they lie on a lattice, and overlaps tie."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for n in counts:
        corner, extent = torch.rand(2, n, 2, generator=generator)
        boxes = torch.cat([corner * .8, corner * .8 + .05 + extent * .5], 1).clamp(max=1) * size
        if grid:
            boxes = (boxes / grid).round() * grid
            boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + grid)
        images.append(InstanceData(bboxes=boxes, labels=torch.randint(0, classes, (n,), generator=generator)))
    return images


def metas(batch, size=96):
    return [dict(img_shape=(size, size), pad_shape=(size, size), scale_factor=(1., 1.))] * batch


def results(head, maps, images, meta=None, ignored=None, cast=lambda level: level.clone()):
    """Losses by name, targets, and the gradients of the summed losses with respect to the maps."""
    maps = [[cast(level).requires_grad_() for level in kind] for kind in maps]
    with Watching(SimpleNamespace(bbox_head=head)) as spy:
        losses = head.loss_by_feat(*maps, images, meta or metas(len(images)), ignored)
    sum(values if isinstance(values, torch.Tensor) else sum(value.mean() for value in values)
        for values in losses.values()).backward()
    return losses, spy._targets, [level.grad for kind in maps for level in kind]


def assert_same(heads, maps, images, tolerance=1e-6, **more):
    (theirs, targets, gradients), (ours, our_targets, our_gradients) = (
        results(head, maps, images, **more) for head in heads)
    assert list(ours) == list(theirs)
    for name, values in theirs.items():
        assert [value.shape for value in ours[name]] == [value.shape for value in values]
        torch.testing.assert_close(torch.stack(ours[name]), torch.stack(values),
                                   rtol=tolerance, atol=tolerance)
    assert our_targets[4] == targets[4]
    for part, wanted in zip(our_targets[:4], targets[:4], strict=True):
        assert all(torch.equal(mine, level) for mine, level in zip(part, wanted, strict=True))
    for mine, wanted in zip(our_gradients, gradients, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=tolerance, atol=tolerance)
    return ours


@pytest.mark.parametrize('seed', range(12))
def test_values_gradients_and_targets_are_mmdets_on_random_batches(seed):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 9, (1 + seed % 6,), generator=generator).tolist()
    heads = both_heads()
    assert_same(heads, outputs(heads[0], len(counts), seed=seed), objects(counts, seed=seed))


@pytest.mark.parametrize('counts', [(4, 1), (20,)])
def test_they_are_on_ssd300s_8732_anchors(counts):
    heads = both_heads('ssd300')
    _, sizes, pixels = SCALES['ssd300']
    assert_same(heads, outputs(heads[0], len(counts), sizes), objects(counts, pixels, 20),
                meta=metas(len(counts), pixels))


@pytest.mark.parametrize('counts', [(0,), (0, 0, 0), (3, 0, 2), (0, 5)])
def test_images_without_objects_have_no_loss_and_a_gradient_of_zeros(counts):
    heads = both_heads()
    losses = assert_same(heads, outputs(heads[0], len(counts)), objects(counts))
    for i, count in enumerate(counts):
        assert bool(losses['loss_cls'][i] == 0) is bool(losses['loss_bbox'][i] == 0) is (count == 0)


@pytest.mark.parametrize('seed', range(6))
def test_overlaps_that_tie_fall_to_the_same_anchor_and_the_same_object(seed):
    heads = both_heads()
    images = objects((6, 3, 8), seed=seed, grid=8)
    anchors = torch.cat(heads[0].prior_generator.grid_priors([(s, s) for s in MAPS], device='cpu'))
    picked = anchors[torch.randperm(len(anchors), generator=torch.Generator().manual_seed(seed))[:4]]
    for number, image in enumerate(images):     # equal to anchors, twice each
        boxes = torch.cat([image.bboxes, picked, picked])
        images[number] = InstanceData(bboxes=boxes, labels=torch.arange(len(boxes)) % 6)
    maps = outputs(heads[0], 3, seed=seed)
    assert_same(heads, maps, images)
    point = InstanceData(bboxes=torch.full((2, 4), 40.), labels=torch.tensor([1, 2]))
    (_, wanted, _), (_, found, _) = (    # it overlaps every anchor by 0; its encoded size is minus infinity
        results(head, maps, [*images[:2], point]) for head in heads)
    assert wanted[0][0][2, 0] == 2
    for mine, levels in zip(found[:4], wanted[:4], strict=True):
        assert all(torch.equal(level, each) for level, each in zip(mine, levels, strict=True))


@pytest.mark.parametrize('draw', [coarse, lambda *shape, generator: torch.zeros(shape)], ids=['few', 'one'])
@pytest.mark.parametrize('counts', [(4, 0, 2, 7), (1,)])
def test_of_equally_hard_negatives_the_same_ones_are_mined(draw, counts):
    heads = both_heads()
    for seed in range(4):
        assert_same(heads, outputs(heads[0], len(counts), seed=seed, draw=draw), objects(counts, seed=seed))


def test_ties_are_mined_alike_on_ssd300s_anchors():
    heads = both_heads('ssd300')
    _, sizes, pixels = SCALES['ssd300']
    assert_same(heads, outputs(heads[0], 2, sizes, draw=coarse), objects((3, 6), pixels, 20),
                meta=metas(2, pixels))


def test_more_objects_than_anchors_leave_no_negative_to_mine():
    heads = both_heads()
    assert_same(heads, outputs(heads[0], 2), objects((900, 150)), tolerance=2e-6)


def test_ignored_boxes_change_nothing_where_ssd_ignores_them():
    heads, images, ignored = both_heads(), objects((2, 3)), objects((4, 0), seed=5)
    maps = outputs(heads[0], 2)
    plain, with_ignored = (assert_same(heads, maps, images, ignored=each) for each in (None, ignored))
    assert torch.stack(plain['loss_cls']).equal(torch.stack(with_ignored['loss_cls']))


def test_images_of_different_padded_shapes_use_the_anchors_inside():
    heads = both_heads()
    meta = [dict(img_shape=(h, w), pad_shape=(h, w)) for h, w in ((96, 96), (60, 96), (96, 40), (60, 96))]
    assert_same(heads, outputs(heads[0], 4), objects((3, 4, 2, 0)), meta=meta)
    nothing = [meta[0], dict(img_shape=(0, 0), pad_shape=(0, 0))]
    for head in heads:
        with pytest.raises(ValueError, match='no valid anchor inside'):
            results(head, outputs(head, 2), objects((1, 1)), nothing)


@pytest.mark.parametrize('options', [
    dict(assigner=dict(neg_iou_thr=.3)), dict(assigner=dict(min_pos_iou=.4)),
    dict(assigner=dict(match_low_quality=False)), dict(train_cfg=dict(pos_weight=2.5, neg_pos_ratio=1)),
    dict(train_cfg=dict(smoothl1_beta=.2)), dict(reg_decoded_bbox=True)], ids=str)
def test_other_thresholds_weights_and_boxes_are_followed(options):
    heads = both_heads(**options)
    tolerance = 1e-6 if 'reg_decoded_bbox' not in options else 4e-6    # a loss in pixels, up to hundreds
    assert heads[1]._as_ssd_matches([[]], None)
    assert_same(heads, outputs(heads[0], 3), objects((4, 0, 6)), tolerance=tolerance)


@pytest.mark.parametrize('options', [
    dict(assigner=dict(gt_max_assign_all=True)), dict(assigner=dict(neg_iou_thr=(.1, .4))),
    dict(assigner=dict(ignore_iof_thr=.5)), dict(train_cfg=dict(allowed_border=0)),
    dict(assigner=dict(iou_calculator=dict(type='BboxOverlaps2D', dtype='fp16')))], ids=str)
def test_any_other_assignment_is_left_to_mmdet(options):
    heads, ignored = both_heads(**options), objects((2, 1, 0), seed=3)
    assert not heads[1]._as_ssd_matches([[]], ignored)
    assert_same(heads, outputs(heads[0], 3), objects((4, 2, 6)), ignored=ignored)


def test_another_sampler_is_left_to_mmdet_and_mined_from():
    sampler = dict(type='RandomSampler', num=60, pos_fraction=.5, neg_pos_ub=-1, add_gt_as_proposals=False)
    heads = both_heads(train_cfg=dict(sampler=sampler))
    maps, found = outputs(heads[0], 2), []
    for head in heads:
        torch.manual_seed(0)
        losses, _, gradients = results(head, maps, objects((3, 5)))
        found.append([*(v.sum() for values in losses.values() for v in values), *gradients])
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('cast', [
    lambda level: level.to(memory_format=torch.channels_last, copy=True),
    lambda level: level.repeat(1, 2, 1, 1)[:, ::2], lambda level: level.double()],
    ids=['channels last', 'strided', 'double'])
def test_maps_of_any_layout_and_precision_are_read_and_written(cast):
    heads = both_heads()
    assert_same(heads, outputs(heads[0], 3), objects((3, 0, 5)), cast=cast)


def test_gradients_lie_in_memory_as_the_maps_do():
    head = both_heads()[1]
    cast = dict(cast=lambda level: level.to(memory_format=torch.channels_last, copy=True))
    assert all(g.is_contiguous() for g in results(head, outputs(head, 2), objects((3, 2)))[2])
    assert all(g.is_contiguous(memory_format=torch.channels_last)
               for g in results(head, outputs(head, 2), objects((3, 2)), **cast)[2])


def test_a_gradient_of_the_gradient_is_mmdets():
    heads, images, found = both_heads(), objects((3, 2)), []
    for head in heads:
        maps = [[level.clone().requires_grad_() for level in kind] for kind in outputs(head, 2)]
        losses = head.loss_by_feat(*maps, images, metas(2))
        total = sum(sum(value.mean() for value in values) for values in losses.values())
        first = torch.autograd.grad(total, maps[0], create_graph=True)
        found.append(torch.autograd.grad(sum(g.pow(2).sum() for g in first), maps[0]))
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('coarse_scores', [False, True])
def test_under_autocast_losses_and_gradients_are_mmdets(coarse_scores):
    heads = both_heads()
    features = [torch.randn(2, c, s, s, generator=torch.Generator().manual_seed(0))
                for c, s in zip(heads[0].in_channels, MAPS, strict=True)]
    found = []
    for head in heads:
        with torch.autocast('cpu', torch.bfloat16):
            maps = head([f * 0 if coarse_scores else f for f in features])
            losses = head.loss_by_feat(*maps, objects((3, 4)), metas(2))
        sum(sum(value.mean() for value in values) for values in losses.values()).backward()
        found.append([*(v.detach().float().sum() for values in losses.values() for v in values),
                      *(p.grad for p in head.parameters())])
    assert maps[0][0].dtype == torch.bfloat16
    for mine, wanted in zip(*found, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)


def test_the_work_in_python_does_not_grow_with_the_batch():
    calls = []
    for head in both_heads():
        for batch in (2, 12):
            lose = partial(head.loss_by_feat, *outputs(head, batch), objects([4] * batch), metas(batch))
            calls.append(torch_calls(lose))
    assert calls[1] > 4 * calls[0]                      # mmdet's
    assert calls[3] < calls[2] + 10 * 10 < calls[1] / 4   # ours: ten calls per image, to pad its objects


def test_predictions_and_state_dict_are_those_of_mmdets_head():
    theirs, ours = both_heads()
    assert isinstance(ours, SSDHead) and list(ours.state_dict()) == list(theirs.state_dict())
    found = [head.predict_by_feat(*outputs(head, 2), batch_img_metas=metas(2))[1] for head in (theirs, ours)]
    assert torch.equal(found[0].bboxes, found[1].bboxes) and torch.equal(found[0].scores, found[1].scores)


def batched(model=None):
    model = model or tiny_ssd()
    return model | dict(bbox_head=model['bbox_head'] | dict(type='BatchedSSDHead'))


def test_twenty_steps_of_training_leave_the_same_trace():
    traces, weights = [], []
    for config in (tiny_ssd(), batched()):
        torch.manual_seed(0)
        model = MODELS.build(ConfigDict(config))
        model.init_weights()
        optimizer = torch.optim.SGD(model.parameters(), lr=2e-3, momentum=.9)
        logs = [train_step(model.train(), make_batch(4, seed=i, objects=[2, 0, 5, 1]), optimizer)[1]
                for i in range(20)]
        traces.append([[log['loss_cls'], log['loss_bbox'], log['loss']] for log in logs])
        weights.append(model.state_dict())
    assert isinstance(model.bbox_head, BatchedSSDHead) and traces[0][-1][-1] < .8 * traces[0][0][-1]
    torch.testing.assert_close(torch.tensor(traces[1]), torch.tensor(traces[0]), rtol=1e-5, atol=1e-5)


TERMS = [dict(type='FineGrained'), dict(type='LogitKD'), dict(type='LAD'), dict(type='GradientAttention')]


@pytest.mark.parametrize('term', TERMS, ids=[term['type'] for term in TERMS])
def test_a_term_sees_the_same_targets_and_the_loss_those_that_it_changed(term):
    logs, seen = [], []
    for student in (tiny_ssd(), batched()):
        model = make_distiller(dict(t=term | dict(weight=1.0)), student)
        total, log = train_step(model, make_batch(3, objects=[2, 0, 4]))
        total.backward()
        logs.append({k: v for k, v in log.items() if k != 'teacher_share'})
        seen.append([p.grad for p in model.student.parameters()])
        assert 'get_targets' not in vars(model.student.bbox_head)
    assert isinstance(model.student.bbox_head, BatchedSSDHead)
    assert logs[1] == pytest.approx(logs[0], rel=1e-5, abs=1e-6)
    for mine, wanted in zip(*seen, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


# the form of a GPU --------------------------------------------------------------------------------
def assert_whole(heads, maps, images, tolerance=1e-5, **more):
    """What a GPU runs has mmdet's targets to the last bit, and the sums of its losses."""
    theirs, targets, gradients = results(heads[0], maps, images, **more)
    with as_if_launched(), Counted() as found:
        ours, our_targets, our_gradients = results(heads[1], maps, images, **more)
    for name, values in theirs.items():
        torch.testing.assert_close(ours[name], torch.stack(values).sum(), rtol=tolerance, atol=tolerance)
    assert our_targets[4] == targets[4]
    for part, wanted in zip(our_targets[:4], targets[:4], strict=True):
        assert all(torch.equal(mine, level) for mine, level in zip(part, wanted, strict=True))
    for mine, wanted in zip(our_gradients, gradients, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=tolerance, atol=tolerance)
    return found


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('grid', [None, 8])
def test_all_anchors_at_once_lose_what_mmdet_loses_without_a_wait(seed, grid):
    heads, counts = both_heads(), [(4, 0, 7), (1,), (0, 0), (3, 2, 1, 8, 5), (0,), (900, 150)][seed]
    found = assert_whole(heads, outputs(heads[0], len(counts), seed=seed),
                         objects(counts, seed=seed, grid=grid))
    assert not found.waits['step'] or seed == 0     # the first step of a size lays its anchors down


@pytest.mark.parametrize('options', [
    dict(assigner=dict(neg_iou_thr=.3)), dict(assigner=dict(min_pos_iou=.4)),
    dict(assigner=dict(match_low_quality=False)), dict(train_cfg=dict(pos_weight=2.5, neg_pos_ratio=1)),
    dict(train_cfg=dict(smoothl1_beta=.2)), dict(reg_decoded_bbox=True)], ids=str)
def test_all_anchors_at_once_follow_other_settings(options):
    heads = both_heads(**options)
    assert_whole(heads, outputs(heads[0], 3), objects((4, 0, 6)))


def test_all_anchors_at_once_leave_out_those_outside_and_merge_pieces_of_objects(monkeypatch):
    heads = both_heads()
    meta = [dict(img_shape=(h, w), pad_shape=(h, w)) for h, w in ((96, 96), (60, 96), (96, 40), (60, 96))]
    assert_whole(heads, outputs(heads[0], 4), objects((3, 4, 2, 0)), meta=meta)
    monkeypatch.setattr(matching, 'MOST', 1)
    assert_whole(heads, outputs(heads[0], 4), objects((3, 4, 2, 0), grid=8), meta=meta)


def test_of_equally_hard_negatives_the_first_are_taken_and_the_loss_is_the_same():
    heads = both_heads()
    maps, images = outputs(heads[0], 2, draw=coarse), objects((3, 6))
    theirs, _, _ = results(heads[0], maps, images)
    with as_if_launched():
        ours, _, _ = results(heads[1], maps, images)
    for name, values in theirs.items():
        torch.testing.assert_close(ours[name], torch.stack(values).sum(), rtol=1e-5, atol=1e-5)
