import pytest
import torch
from torch import nn

from hgd_det.errors import UserError
from hgd_det.models import MobileNetV1SSD


def test_the_maps_have_ssds_sizes_and_the_announced_channels():
    backbone = MobileNetV1SSD().eval()
    sizes = {}
    for index, layer in enumerate(backbone.features):
        layer.register_forward_hook(
            lambda module, inputs, output, index=index: sizes.update({index: output.shape[-1]}))
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 300, 300))
    assert [tuple(m.shape[1:]) for m in maps] == [(256, 38, 38), (512, 19, 19), (1024, 10, 10)]
    assert backbone.out_channels == (256, 512, 1024)
    assert list(sizes.values()) == [150] * 2 + [75] * 2 + [38] * 2 + [19] * 6 + [10] * 2


def test_the_trunk_is_mobilenet_v1():
    with torch.device('meta'):
        backbone = MobileNetV1SSD()
    # The classifier of the paper's network has 1024 * 1000 + 1000 of its 4,231,976 parameters
    assert sum(p.numel() for p in backbone.parameters()) == 4_231_976 - 1_025_000
    assert sum(isinstance(m, nn.Conv2d) for m in backbone.modules()) == 27


def test_width_scales_every_block():
    backbone = MobileNetV1SSD(0.125, out_blocks=(3, 13))
    maps = backbone(torch.randn(2, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [(2, 16, 16, 16), (2, 128, 2, 2)]
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None for p in backbone.parameters())


@pytest.mark.parametrize('kwargs', [dict(width=0), dict(out_blocks=(0,)), dict(out_blocks=(14,))])
def test_impossible_arguments_are_refused(kwargs):
    with pytest.raises(UserError, match='MobileNetV1SSD'):
        MobileNetV1SSD(**kwargs)
