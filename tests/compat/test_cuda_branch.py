"""Whole detectors, taken through the branch that mmdet and mmcv take on CUDA: losses, and the gradient of
every weight, are those of the Python forms that they take on a CPU.
"""
import contextlib
import copy

import mmcv._ext
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hub import get_config

import hgd_det.registered  # noqa: F401
from hgd_det.compat import extension
from hgd_det.compat.environment import has_compiled_ops
from hgd_det.testing import make_batch

register_all_modules(init_default_scope=True)
THIN = dict(backbone=dict(depth=18, norm_cfg=dict(type='BN', requires_grad=True), init_cfg=None))
DETR = {**THIN, 'neck': dict(in_channels=[128, 256, 512]), 'num_queries': 30,
        'encoder': dict(num_layers=1), 'decoder': dict(num_layers=2)}
FPN = {**THIN, 'neck': dict(in_channels=[64, 128, 256, 512])}
# config, what is smaller than there, operators that a step must have called
KINDS = {
    'RetinaNet': ('retinanet/retinanet_r50_fpn_1x_coco.py', FPN, {'sigmoid_focal_loss'}),
    'FCOS': ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', FPN, {'sigmoid_focal_loss'}),
    'ATSS': ('atss/atss_r50_fpn_1x_coco.py', FPN, {'sigmoid_focal_loss'}),
    'Deformable DETR': ('deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', DETR,
                        {'sigmoid_focal_loss', 'ms_deform_attn'}),
    'DINO': ('dino/dino-4scale_r50_8xb2-12e_coco.py', DETR, {'ms_deform_attn'}),
}


@pytest.fixture
def cuda_branch(monkeypatch):
    """Within `with cuda_branch()`, tensors say that they are on CUDA; data and kernels are the CPU's."""
    @contextlib.contextmanager
    def pretending():
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, 'is_cuda', True, raising=False)
            patch.setattr('mmdet.models.losses.focal_loss.torch.cuda.is_available', lambda: True)
            patch.setattr('mmcv.ops.multi_scale_deform_attn.IS_CUDA_AVAILABLE', True)
            yield

    return pretending


@pytest.fixture
def called(monkeypatch):
    """Names of the operators that were called."""
    names = set()

    def noting(name, op):
        def noted(*args, **kwargs):
            names.add(name)
            return op(*args, **kwargs)

        return noted

    for name, op in extension.OPS.items():
        monkeypatch.setattr(mmcv._ext, name, noting(name, op))
    return names


def built(kind, device='cpu'):
    path, smaller, _ = KINDS[kind]
    config = Config(dict(model=get_config(f'mmdet::{path}').model.to_dict()))
    config.merge_from_dict(dict(model=smaller))
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    model.init_weights()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if name.endswith('sampling_offsets'):
            # A new attention samples at cells' very centres, where a map has two slopes: which of them the
            # Python form takes is a matter of its rounding.
            module.bias.data += torch.rand(module.bias.shape) * 0.4 + 0.1
    return model.to(device).train()


def step(model, batch):
    """Losses by name, gradients by the weight's name."""
    torch.manual_seed(1)
    model.zero_grad()
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    total, log = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
    total.backward()
    return log, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.skipif(has_compiled_ops(), reason='this mmcv has its compiled operators')
@pytest.mark.parametrize('kind', KINDS)
def test_on_the_branch_of_cuda_losses_and_gradients_are_those_of_the_python_forms(kind, cuda_branch, called):
    model, batch = built(kind), make_batch(batch=2, size=96, num_classes=80)
    wanted, wanted_grads = step(model, batch)
    assert not called
    with cuda_branch():
        got, got_grads = step(model, batch)
    assert {f'{name}_{way}' for name in KINDS[kind][2] for way in ('forward', 'backward')} <= called
    assert got.keys() == wanted.keys() and got_grads.keys() == wanted_grads.keys()
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-4, atol=1e-5)
    scale = max(grad.abs().max() for grad in wanted_grads.values())
    for name, grad in wanted_grads.items():
        torch.testing.assert_close(got_grads[name], grad, rtol=1e-3, atol=float(scale) * 1e-5, msg=name)


@pytest.mark.gpu
@pytest.mark.parametrize('amp', [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('kind', KINDS)
def test_a_step_on_cuda_is_the_step_on_a_cpu(kind, amp, monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    batch = make_batch(batch=2, size=96, num_classes=80)
    wanted, _ = step(built(kind), batch)
    with torch.autocast('cuda', amp, enabled=amp is not None):
        got, grads = step(built(kind, 'cuda'), batch)
    assert all(torch.isfinite(grad).all() for grad in grads.values())
    drawn = {name for name in wanted if 'dn_' in name}  # the noise of DINO's queries is the device's own
    for name in wanted.keys() - drawn - ({'loss'} if drawn else set()):
        torch.testing.assert_close(got[name].cpu(), wanted[name], rtol=0.1 if amp else 1e-3,
                                   atol=0.02 if amp else 1e-3)
