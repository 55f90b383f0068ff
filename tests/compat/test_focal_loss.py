"""The focal losses through mmcv's own functions, as CUDA calls them, against mmdet's Python form."""
import pytest
import torch
from torch.nn import functional as F

mmcv_ops = pytest.importorskip('mmcv.ops')
CLASSES = 5
LOGITS = torch.randn(40, CLASSES, generator=torch.manual_seed(0), dtype=torch.float64) * 4
TARGETS = torch.randint(0, CLASSES + 1, (40,), generator=torch.manual_seed(1))  # the last is background


def value_and_gradient(function, logits):
    logits = logits.detach().requires_grad_()
    value = function(logits)
    # uneven, so that each element's own gradient shows
    upstream = torch.linspace(1, 2, value.numel()).view_as(value).to(value)
    gradient, = torch.autograd.grad(value, logits, upstream)
    return value, gradient


def sigmoid_loss(targets, gamma=2.0, alpha=0.25):
    return lambda logits: mmcv_ops.sigmoid_focal_loss(logits, targets, gamma, alpha, None, 'none')


def by_mmdet(logits, targets, gamma, alpha):
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
    one_hot = F.one_hot(targets, CLASSES + 1)[:, :CLASSES]
    return py_sigmoid_focal_loss(logits, one_hot, gamma=gamma, alpha=alpha, reduction='none')


@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (1.5, 0.1), (0.0, 0.5)])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-12), (torch.float32, 1e-5),
                                              (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_the_sigmoid_loss_and_its_gradient_equal_mmdets_python_form(device, dtype, tolerance, gamma, alpha):
    logits, targets = LOGITS.to(device, dtype), TARGETS.to(device)
    got = value_and_gradient(sigmoid_loss(targets, gamma, alpha), logits)
    wanted = value_and_gradient(lambda x: by_mmdet(x, targets, gamma, alpha), logits.double())
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('logit', [-300., -100., 0., 100., 300.])
def test_no_logit_is_too_large_for_the_sigmoid_loss(device, logit):
    logits, targets = torch.full((2, 1), logit, device=device), torch.tensor([0, 1], device=device)
    got = value_and_gradient(sigmoid_loss(targets), logits)
    assert all(torch.isfinite(part).all() for part in got)
    wanted = [0.25 * max(-logit, 0), 0.75 * max(logit, 0)]
    torch.testing.assert_close(got[0].flatten().tolist(), wanted, rtol=1e-6, atol=0.14)


def test_weights_of_classes_multiply_the_losses_of_their_targets_rows(device):
    logits, targets = LOGITS.to(device), TARGETS.to(device)
    weight = torch.arange(1., CLASSES + 1, device=device, dtype=torch.float64)
    plain = sigmoid_loss(targets)(logits)
    got = mmcv_ops.sigmoid_focal_loss(logits, targets, 2.0, 0.25, weight, 'none')
    rows = torch.cat([weight, weight.new_ones(1)])[targets]  # background is none of the classes
    torch.testing.assert_close(got, plain * rows[:, None])


def softmax_by_definition(logits, targets, gamma, alpha, weight):
    log_p = logits.log_softmax(1).gather(1, targets.clamp(min=0)[:, None])[:, 0]
    count = torch.where(targets < 0, 0, weight[targets])
    return -alpha * count * (1 - log_p.exp()).pow(gamma) * log_p


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-10), (torch.float32, 1e-5),
                                              (torch.float16, 3e-3), (torch.bfloat16, 2e-2)])
def test_the_softmax_loss_and_its_gradient_equal_autograd_of_the_definition(device, dtype, tolerance):
    logits, targets = LOGITS.to(device, dtype), TARGETS.to(device) - 1  # -1 is to be ignored
    weight = torch.arange(1., CLASSES + 1, device=device)
    got = value_and_gradient(
        lambda x: mmcv_ops.softmax_focal_loss(x, targets, 2.0, 0.25, weight.to(dtype), 'sum'), logits)
    wanted = value_and_gradient(
        lambda x: softmax_by_definition(x, targets, 2.0, 0.25, weight.double()).sum(), logits.double())
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), theirs, rtol=tolerance, atol=tolerance)


def test_losses_of_nothing_are_nothing(device):
    for function in (mmcv_ops.sigmoid_focal_loss, mmcv_ops.softmax_focal_loss):
        logits = torch.zeros(0, CLASSES, device=device, requires_grad=True)
        function(logits, torch.zeros(0, dtype=torch.long, device=device), 2.0, 0.25, None, 'sum').backward()
        assert logits.grad.shape == (0, CLASSES)
