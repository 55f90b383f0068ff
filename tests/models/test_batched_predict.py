"""The detections of a batch at once: mmdet's, image by image, bit for bit and tie for tie."""
import copy
from functools import partial

import pytest
import torch

import hgd_det.registered  # noqa: F401  (mmdet's own SSDHead cannot predict without)
from hgd_det.models import DistributionSSDHead
from hgd_det.models.batched_predict import covers
from hgd_det.testing import torch_calls

from mmdet.registry import MODELS  # isort: skip
from mmengine.config import Config  # isort: skip
from mmengine.registry import init_default_scope  # isort: skip

init_default_scope('mmdet')

SCALES = {'shapes': ('configs/shapes/_base_/model.py', (12, 6, 3, 1), 96),
          'ssd300': ('configs/_base_/models/ssd300_vgg16.py', (38, 19, 10, 5, 3, 1), 300)}


def both_heads(scale='shapes', nms=None, **test_cfg):
    """mmdet's head and ours."""
    config = copy.deepcopy(Config.fromfile(SCALES[scale][0]).model)
    config.test_cfg.update(test_cfg)
    config.test_cfg.nms.update(nms or {})
    config.bbox_head.update(train_cfg=config.train_cfg, test_cfg=config.test_cfg)
    return [MODELS.build(config.bbox_head | dict(type=kind)) for kind in ('SSDHead', 'BatchedSSDHead')]


def outputs(head, batch, scale='shapes', seed=0, background=3., step=None):
    """Scores and deltas; with ``step`` they are multiples of it, and many tie."""
    generator = torch.Generator().manual_seed(seed)
    maps = [[torch.randn(batch, a * width, s, s, generator=generator) * 1.5
             for a, s in zip(head.num_base_priors, SCALES[scale][1], strict=True)]
            for width in (head.cls_out_channels, 4)]
    if step:
        maps = [[(level / step).round() * step for level in kind] for kind in maps]
    for level in maps[0]:
        level.unflatten(1, (-1, head.cls_out_channels))[:, :, -1] += background
    return maps


def metas(batch, scale='shapes', factor=(.6, .8)):
    size = SCALES[scale][2]
    return [dict(img_shape=(size, size), pad_shape=(size, size), scale_factor=factor)] * batch


def assert_same(heads, maps, meta, some=True, **more):
    """The number of detections, the same of both."""
    theirs, ours = ([image.to_dict() for image in head.predict_by_feat(*maps, batch_img_metas=meta, **more)]
                    for head in heads)
    for number, (one, other) in enumerate(zip(theirs, ours, strict=True)):
        assert list(one) == list(other)
        for name, values in one.items():
            assert values.dtype == other[name].dtype and values.shape == other[name].shape
            assert torch.equal(values.nan_to_num(), other[name].nan_to_num()), f'{name} of image {number}'
    found = [len(image['scores']) for image in ours]
    assert any(found) is some
    return found


@pytest.mark.parametrize('step', [None, .5, 2.])
@pytest.mark.parametrize('seed', range(10))
def test_detections_are_mmdets_on_random_outputs(seed, step):
    heads = both_heads()
    assert covers(heads[1], heads[1].test_cfg, [])
    assert_same(heads, outputs(heads[0], 1 + seed % 5, seed=seed, background=seed % 7, step=step),
                metas(1 + seed % 5), rescale=seed % 2 == 0)


@pytest.mark.parametrize('step', [None, 1.])
def test_they_are_on_ssd300s_8732_anchors(step):
    heads = both_heads('ssd300')
    found = assert_same(heads, outputs(heads[0], 3, 'ssd300', background=5, step=step), metas(3, 'ssd300'),
                        rescale=True)
    assert found == [200] * 3


@pytest.mark.parametrize('options', [
    dict(score_thr=.3), dict(score_thr=.6), dict(nms_pre=7), dict(nms_pre=1), dict(max_per_img=3),
    dict(max_per_img=0), dict(min_bbox_size=12), dict(min_bbox_size=-1), dict(nms=dict(iou_threshold=0.)),
    dict(nms=dict(iou_threshold=.9)), dict(nms=dict(iou_threshold=1.))], ids=str)
@pytest.mark.parametrize('step', [None, 1.])
def test_thresholds_and_bounds_are_followed(options, step):
    heads = both_heads(**options)
    assert covers(heads[1], heads[1].test_cfg, [])
    assert_same(heads, outputs(heads[0], 3, background=1, step=step), metas(3), rescale=True,
                some=options.get('max_per_img') != 0)


@pytest.mark.parametrize('options', [
    dict(nms=dict(type='soft_nms')), dict(nms=dict(class_agnostic=True)), dict(nms=dict(max_num=9)),
    dict(nms=dict(split_thr=500)), dict(score_thr=0), dict(score_thr=1), dict(nms_pre=-1), dict(nms_pre=5000),
    dict(max_per_img=-1)], ids=str)
def test_any_other_test_cfg_is_left_to_mmdet(options):
    heads = both_heads(**options)
    assert not covers(heads[1], heads[1].test_cfg, [])
    assert_same(heads, outputs(heads[0], 2), metas(2), rescale=True, some=options.get('score_thr') != 1)


def test_half_precision_is_left_to_mmdet_and_double_is_not():
    heads = both_heads()
    for dtype, covered in ((torch.bfloat16, False), (torch.float64, True)):
        maps = [[level.to(dtype) for level in kind] for kind in outputs(heads[0], 2)]
        assert covers(heads[1], heads[1].test_cfg, maps[0]) is covered
        assert_same(heads, maps, metas(2))


def test_without_nms_all_candidates_are_returned_level_by_level():
    heads = both_heads(nms_pre=40)
    found = assert_same(heads, outputs(heads[0], 3, step=1.), metas(3), with_nms=False)
    assert min(found) > heads[0].test_cfg.max_per_img


def test_a_config_given_to_the_call_is_followed():
    heads = both_heads()
    cfg = copy.deepcopy(heads[0].test_cfg)
    cfg.update(score_thr=.4, max_per_img=5)
    assert assert_same(heads, outputs(heads[0], 2), metas(2), cfg=cfg) == [5, 5]


def test_every_image_has_its_own_border_and_scale():
    heads = both_heads()
    meta = [dict(img_shape=(h, w), scale_factor=(w / 96, h / 96)) for h, w in
            ((96, 96), (60, 96), (96, 40), (60, 96))]
    assert_same(heads, outputs(heads[0], 4), meta, rescale=True)


@pytest.mark.parametrize('background', [30., (30., 2., 30.)])
def test_images_in_which_nothing_is_found(background):
    heads = both_heads()
    maps = outputs(heads[0], 3, background=0)
    for level in maps[0]:
        level.unflatten(1, (-1, 7))[:, :, -1] += torch.tensor(background).expand(3)[:, None, None, None]
    found = assert_same(heads, maps, metas(3), rescale=True, some=background != 30.)
    assert [n > 0 for n in found] == [background != 30. and i == 1 for i in range(3)]


@pytest.mark.parametrize('size', [0, -1])
def test_what_is_not_finite_changes_nothing_elsewhere(size):
    heads = both_heads(min_bbox_size=size)
    maps = outputs(heads[0], 4)
    for value, image in ((float('nan'), 0), (float('inf'), 1), (-float('inf'), 2)):
        maps[0][0][image, 3, 2, 2] = maps[0][1][image, 6, 1, 1] = maps[1][0][image, 5, 4, 4] = value
    assert_same(heads, maps, metas(4))


@pytest.mark.parametrize('cast', [
    lambda level: level.to(memory_format=torch.channels_last), lambda level: level.repeat(1, 2, 1, 1)[:, ::2],
    lambda level: level.requires_grad_()], ids=['channels last', 'strided', 'requires grad'])
def test_maps_of_any_layout_are_read(cast):
    heads = both_heads()
    maps = [[cast(level) for level in kind] for kind in outputs(heads[0], 3)]
    assert_same(heads, maps, metas(3))


def test_a_head_of_distributions_has_the_same_path():
    config = copy.deepcopy(Config.fromfile(SCALES['shapes'][0]).model)
    options = config.bbox_head | dict(train_cfg=config.train_cfg, test_cfg=config.test_cfg)
    head, plain = MODELS.build(options | dict(type='DistributionSSDHead')), both_heads()[0]
    assert isinstance(head, DistributionSSDHead)
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, a * 4 * (head.n + 1), s, s, generator=generator)
              for a, s in zip(head.num_base_priors, SCALES['shapes'][1], strict=True)]
    scores = outputs(plain, 2)[0]
    wanted = plain.predict_by_feat(scores, head.to_deltas(logits), batch_img_metas=metas(2))
    found = head.predict_by_feat(scores, logits, batch_img_metas=metas(2))
    for mine, other in zip(found, wanted, strict=True):
        assert torch.equal(mine.bboxes, other.bboxes) and torch.equal(mine.labels, other.labels)


def test_the_work_in_torch_does_not_grow_with_the_batch():
    calls = []
    for head in both_heads():
        for batch in (2, 12):
            find = partial(head.predict_by_feat, *outputs(head, batch), batch_img_metas=metas(batch))
            calls.append(torch_calls(find))
    assert calls[1] > 4 * calls[0]                      # mmdet's
    assert calls[3] < calls[2] + 10 * 10 < calls[1] / 4   # ours: some per image, to hand out what was found
