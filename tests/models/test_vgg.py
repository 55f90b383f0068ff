import pytest
import torch
from mmdet.models.backbones import SSDVGG
from torch import nn

from hgd_det.errors import UserError
from hgd_det.models import SlimSSDVGG


@pytest.fixture(scope='module')
def pair():
    torch.manual_seed(0)
    ours, theirs = SlimSSDVGG(16), SSDVGG(16)
    ours.init_weights()
    return ours, theirs


def test_full_width_takes_mmdets_weights_and_gives_them_back(pair):
    ours, theirs = pair
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict(), strict=True)
    image = torch.randn(1, 3, 75, 75)
    with torch.no_grad():
        for mine, other in zip(ours(image), theirs(image), strict=True):
            assert torch.equal(mine, other)
    theirs.features[0].weight.data.add_(1)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert torch.equal(ours.features[0].weight, theirs.features[0].weight)


def test_its_weights_are_drawn_as_mmdet_draws_them():
    drawn = []
    for build in (SlimSSDVGG, SSDVGG):
        torch.manual_seed(3)
        backbone = build(11) if build is SlimSSDVGG else SSDVGG(11, out_feature_indices=(14, 24))
        torch.manual_seed(4)
        backbone.init_weights()
        drawn.append(backbone.state_dict())
    assert all(torch.equal(value, drawn[1][key]) for key, value in drawn[0].items())


@pytest.mark.parametrize(('depth', 'indices'), [(11, (14, 24)), (13, (18, 28)), (16, (22, 34)),
                                                (19, (26, 40))])
def test_the_outputs_are_the_relus_of_stage_four_and_fc7(depth, indices):
    backbone = SlimSSDVGG(depth, 0.02)
    assert backbone.out_feature_indices == indices
    assert all(isinstance(backbone.features[i], nn.ReLU) for i in indices)
    assert isinstance(backbone.features[indices[0] + 1], nn.MaxPool2d)
    assert indices[1] == len(backbone.features) - 1


@pytest.mark.parametrize(('width', 'channels'), [(1.0, (512, 1024)), (0.5, (256, 512)),
                                                 (0.3, (154, 307))])
def test_width_scales_every_layer_but_the_image(width, channels):
    with torch.device('meta'):
        slim, full = SlimSSDVGG(16, width), SlimSSDVGG(16)
    assert slim.out_channels == channels
    convs = [[m for m in net.modules() if isinstance(m, nn.Conv2d)] for net in (slim, full)]
    assert len(convs[0]) == 15
    for thin, wide in zip(*convs, strict=True):
        assert thin.out_channels == round(wide.out_channels * width)
        assert thin.in_channels == (3 if wide.in_channels == 3 else round(wide.in_channels * width))


@pytest.mark.parametrize(('size', 'sizes'), [(300, (38, 19)), (96, (12, 6)), (97, (13, 7)),
                                             (1, (1, 1))])
def test_the_maps_have_the_announced_channels_and_ssds_sizes(size, sizes):
    backbone = SlimSSDVGG(11, 0.05)
    maps = backbone(torch.zeros(2, 3, size, size))
    assert [tuple(m.shape) for m in maps] == [(2, c, s, s) for c, s in
                                              zip(backbone.out_channels, sizes, strict=True)]


@pytest.mark.parametrize('bn_eval', [False, True])
def test_batchnorm_statistics_train_unless_they_are_frozen_on_request(bn_eval):
    backbone = SlimSSDVGG(11, 0.05, with_bn=True, bn_eval=bn_eval).train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 8 + 2
    backbone(torch.randn(2, 3, 64, 64) + 5)
    assert all((norm.running_mean == 0).all().item() is bn_eval for norm in norms)
    assert not any(norm.training for norm in backbone.eval().modules()
                   if isinstance(norm, nn.BatchNorm2d))


def test_every_parameter_gets_a_gradient():
    backbone = SlimSSDVGG(13, 0.05, with_bn=True)
    sum(m.square().sum() for m in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.parametrize(('args', 'named'), [((12,), '12'), ((16, 0), 'width is 0'),
                                             ((16, -0.5), '-0.5'), ((16, float('nan')), 'nan')])
def test_impossible_depth_and_width_are_refused_by_name(args, named):
    with pytest.raises(UserError, match=named):
        SlimSSDVGG(*args)
