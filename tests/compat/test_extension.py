"""Laws over all operators that stand in: called as mmcv calls them, and without a wait for the device."""
import inspect
import re
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hgd_det.compat import extension

ops = pytest.importorskip('mmcv.ops')

WAITS = ('_local_scalar_dense', 'nonzero', 'is_nonzero', 'masked_select', 'unique', 'equal', 'item')


class Waits(TorchDispatchMode):
    """Names of the operations that make the CPU wait for a device, in order."""

    def __init__(self):
        super().__init__()
        self.met = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        kwargs = kwargs or {}
        if name in WAITS or name.startswith('_unique') or (name == '_to_copy' and kwargs.get('device')):
            self.met.append(name)
        if name in ('index', 'index_put', 'index_put_'):
            self.met += ['a mask' for table in args[1] if table is not None and table.dtype == torch.bool]
        return func(*args, **kwargs)


def maps(channels=4):
    return torch.randn(2, channels, 6, 7, requires_grad=True)


def attention():
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
    return MultiScaleDeformableAttnFunction.apply(
        torch.randn(2, 12, 2, 4, requires_grad=True), torch.tensor([[3, 4]]), torch.tensor([0]),
        torch.rand(2, 5, 2, 1, 3, 2, requires_grad=True), torch.rand(2, 5, 2, 1, 3, requires_grad=True), 64)


ROIS = torch.tensor([[0., 0, 0, 4, 4], [1, 1, 2, 5, 3]])
LABELS = torch.tensor([0, 2, 3])
# What autograd's functions of mmcv call forward and backward, without a wait
CALLS = {
    'sigmoid_focal_loss': lambda: ops.sigmoid_focal_loss(
        torch.randn(3, 3, requires_grad=True), LABELS, 2.0, 0.25, None, 'none'),
    'softmax_focal_loss': lambda: ops.softmax_focal_loss(
        torch.randn(3, 4, requires_grad=True), LABELS, 2.0, 0.25, None, 'sum'),
    'ms_deform_attn': attention,
    'deform_conv': lambda: ops.deform_conv2d(
        maps(), torch.randn(2, 18, 4, 5, requires_grad=True), torch.randn(3, 4, 3, 3, requires_grad=True)),
    'modulated_deform_conv': lambda: ops.modulated_deform_conv2d(
        maps(), torch.randn(2, 18, 4, 5), torch.rand(2, 9, 4, 5), torch.randn(3, 4, 3, 3), torch.randn(3)),
    'carafe': lambda: ops.carafe(maps(), torch.rand(2, 9, 12, 14), 3, 1, 2),
    'roi_align': lambda: ops.roi_align(maps(), ROIS, (2, 3), 1.0, 2, 'max', False),
}
# Without a gradient; masks and boxes that are left over have as many entries as it turns out.
OTHERS = {'nms', 'softnms', 'nms_match', 'masked_im2col_forward', 'masked_col2im_forward'}


def test_every_operator_is_called_here_or_has_no_gradient():
    called = {name for name in extension.OPS if re.sub('_(forward|backward).*', '', name) in CALLS}
    assert called | OTHERS == set(extension.OPS) and not called & OTHERS


@pytest.mark.parametrize('name', CALLS)
def test_no_operator_waits_for_its_device(name):
    with Waits() as waits:
        CALLS[name]().sum().backward()
    assert not waits.met


def test_regions_of_any_size_make_one_wait_each_way():
    """Only the CPU can say how long a list is."""
    with Waits() as waits:
        ops.roi_align(maps(), ROIS, (2, 3), 1.0, 0, 'avg', False).sum().backward()
    assert waits.met == ['_local_scalar_dense'] * 2


def test_a_wait_would_be_noticed():
    for act in (lambda x: x.item(), lambda x: x.nonzero(), lambda x: bool(x > 0), lambda x: x[x > 0],
                lambda x: x.unique(), lambda x: torch.equal(x, x + 1)):
        with Waits() as waits:
            act(torch.ones(1))
        assert waits.met


def test_arguments_are_named_as_in_mmcvs_sources():
    source = Path(ops.__file__).parent / 'csrc/pytorch/pybind.cpp'
    if not source.exists():
        pytest.skip('this mmcv comes without its sources')
    text = source.read_text()
    for name, op in extension.OPS.items():
        declared = re.search(rf'm\.def\("{name}",.*?;', text, re.S)
        wanted = re.findall(r'py::arg\("(\w+)"\)', declared[0])
        parameters = inspect.signature(op).parameters.values()
        named = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        if any(p.kind is p.VAR_KEYWORD for p in parameters):  # the kernel's settings, looked up by name
            assert set(named) <= set(wanted), name
        else:
            assert named == wanted, name
