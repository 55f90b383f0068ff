"""A teacher without its BatchNorm layers computes what it did."""
import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn

from hgd_det.distill.folding import Folding
from hgd_det.models.vgg import SlimSSDVGG

from mmdet.registry import MODELS  # isort: skip


def learned(module: nn.Module) -> nn.Module:
    """In eval, with statistics and scales as training leaves them: none 0 or 1."""
    torch.manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            nn.init.normal_(norm.running_mean)
            for values in (norm.running_var, norm.weight):
                nn.init.uniform_(values, 0.3, 2)
            nn.init.normal_(norm.bias)
    module.eval()
    return module


def norms(module: nn.Module) -> int:
    return sum(isinstance(one, nn.BatchNorm2d) for one in module.modules())


def assert_same(module: nn.Module, folded: int):
    images = torch.randn(2, 3, 64, 64)
    state, total, folding = copy.deepcopy(module.state_dict()), norms(module), Folding(module)
    with torch.no_grad():
        before = module(images)
        with folding():
            assert norms(module) == total - folded
            after = module(images)
        assert all(torch.equal(a, b) for a, b in zip(before, module(images), strict=True))
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(a.abs().max()))
    now = module.state_dict()
    assert now.keys() == state.keys() and all(torch.equal(now[key], state[key]) for key in state)


def test_vgg_without_its_norms_computes_the_same():
    assert_same(learned(SlimSSDVGG(width=0.125, with_bn=True)), folded=15)


@pytest.mark.parametrize('kind, options, folded', [
    ('ResNet', dict(depth=18), 20), ('ResNet', dict(depth=50), 53),
    ('ResNet', dict(depth=18, deep_stem=True, avg_down=True), 22),
    ('ResNeXt', dict(depth=50, groups=4, base_width=4), 53),
    ('Res2Net', dict(depth=50, scales=4, base_width=26), 7)])    # its blocks have a forward of their own
def test_a_resnet_without_its_norms_computes_the_same(kind, options, folded):
    assert_same(learned(MODELS.build(dict(type=kind, **options))), folded)


@pytest.mark.parametrize('bias', [True, False])
def test_a_conv_module_without_its_norm_computes_the_same(bias):
    assert_same(learned(ConvModule(3, 8, 3, bias=bias, norm_cfg=dict(type='BN'))), folded=1)


@pytest.mark.parametrize('tapped', ['features.3', 'features.4'])
def test_a_convolution_or_a_norm_that_is_read_keeps_its_output(tapped):
    vgg, seen = learned(SlimSSDVGG(width=0.125, with_bn=True)), []
    handle = vgg.get_submodule(tapped).register_forward_hook(lambda *call: seen.append(call[2].clone()))
    assert_same(vgg, folded=14)
    handle.remove()
    assert len(seen) == 3    # before, in and after the block, in which all that comes earlier was folded
    for other in seen[1:]:
        torch.testing.assert_close(other, seen[0], rtol=1e-4, atol=1e-5)
    assert_same(vgg, folded=15)


@pytest.mark.parametrize('module', [
    ConvModule(3, 3, 3, norm_cfg=dict(type='BN'), order=('norm', 'conv', 'act')),
    ConvModule(3, 3, 3, norm_cfg=dict(type='BN'), order=('conv', 'act', 'norm')),
    ConvModule(3, 4, 3, norm_cfg=dict(type='GN', num_groups=2)),
    nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)),
    nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
], ids=['norm first', 'activation between', 'group norm', 'relu between', 'statistics of the batch'])
def test_what_does_not_follow_at_once_is_left_alone(module):
    assert_same(learned(module), folded=0)


def test_weights_that_change_are_folded_as_they_are_and_an_error_leaves_them():
    module = learned(ConvModule(3, 8, 3, norm_cfg=dict(type='BN')))
    folding, images = Folding(module), torch.randn(1, 3, 8, 8)
    for _ in range(2):
        with torch.no_grad():
            module.conv.weight.mul_(2)
            module.bn.running_mean.add_(1)
            want = module(images)
            with pytest.raises(KeyError), folding():
                torch.testing.assert_close(module(images), want)
                raise KeyError
    assert isinstance(module.bn, nn.BatchNorm2d) and module.conv.weight.requires_grad
