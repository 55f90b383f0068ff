import math

import pytest
import torch
from mmdet.registry import MODELS
from torch import nn

from hgd_det.errors import UserError
from hgd_det.models import BackgroundPrior

CLASSES = 3


def head(**kwargs):
    return MODELS.build(dict(type='SSDHead', num_classes=CLASSES, in_channels=[4] * 6,
                             anchor_generator=dict(
                                 type='SSDAnchorGenerator', scale_major=False, input_size=300,
                                 basesize_ratio_range=(0.2, 0.9),
                                 strides=[8, 16, 32, 64, 100, 300],
                                 ratios=[[2], [2, 3], [2, 3], [2, 3], [2], [2]]), **kwargs))


@pytest.mark.parametrize('prior', [0.5, 0.9, 0.99])
def test_every_anchor_of_a_silent_image_starts_at_the_prior(prior):
    ssd = head(init_cfg=[dict(type='Xavier', layer='Conv2d', distribution='uniform', bias=0),
                         dict(type='BackgroundPrior', prior=prior)])
    ssd.init_weights()
    scores, boxes = ssd([torch.zeros(1, 4, 2, 2)] * 6)
    for score in scores:
        p = score.permute(0, 2, 3, 1).reshape(-1, CLASSES + 1).softmax(-1)
        assert torch.allclose(p[:, -1], torch.tensor(prior))
        assert torch.allclose(p[:, :-1], torch.tensor((1 - prior) / CLASSES))
    assert all((box == 0).all() for box in boxes)
    assert all(convs[-1].weight.std() > 0 for convs in ssd.cls_convs)


def test_the_heads_keys_stay_those_of_a_plain_head():
    ssd = head(init_cfg=dict(type='BackgroundPrior'))
    ssd.init_weights()
    head().load_state_dict(ssd.state_dict(), strict=True)


def test_the_background_bias_is_the_closed_form():
    ssd = head()
    BackgroundPrior(0.9)(ssd)
    assert ssd.cls_convs[0][-1].bias[CLASSES].item() == pytest.approx(math.log(3 * 0.9 / 0.1))


@pytest.mark.parametrize('prior', [0, 1, -0.1, 1.5])
def test_a_prior_that_is_no_probability_is_refused(prior):
    with pytest.raises(UserError, match='probability'):
        BackgroundPrior(prior)


def test_a_head_without_background_class_is_refused():
    with pytest.raises(UserError, match='not for Conv2d'):
        BackgroundPrior()(nn.Conv2d(1, 1, 1))
