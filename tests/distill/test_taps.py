import pytest
import torch
from torch import nn

from hgd_det.distill.taps import Tap, TapError, Taps


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(4, 2, 1)
        self.split = Split()
        self.unused = nn.Identity()

    def forward(self, x):
        x = self.relu(self.conv(x))
        a, b = self.split(x)
        return self.head(a), self.head(b)


class Split(nn.Module):
    def forward(self, x):
        return x * 2, x * 3


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


IMAGE = torch.rand(1, 3, 5, 5)


def test_a_tap_reads_the_output_of_its_module_and_an_index_one_of_several(net):
    with Taps(net, ['relu', 'split[1]']) as maps:
        net(IMAGE)
    assert torch.equal(maps['split[1]'], maps['relu'] * 3)


def test_a_call_number_picks_one_run_of_a_shared_module(net):
    with Taps(net, ['head', 'head#1']) as maps:
        first, second = net(IMAGE)
    assert torch.equal(maps['head'], first) and torch.equal(maps['head#1'], second)


def test_a_map_overwritten_by_an_in_place_activation_is_refused(net):
    with Taps(net, ['conv']) as maps:
        net(IMAGE)
    with pytest.raises(TapError, match="overwritten in place.*'conv@pre'"):
        maps['conv']


def test_pre_keeps_the_values_before_an_in_place_activation(net):
    with Taps(net, ['conv@pre', 'relu']) as maps:
        net(IMAGE)
    assert torch.equal(maps['conv@pre'].relu(), maps['relu'])
    assert (maps['conv@pre'] < 0).any()


def test_an_unknown_tap_lists_near_names(net):
    with pytest.raises(TapError, match='near names: .*relu'):
        Taps(net, ['rellu'])


def test_a_module_that_does_not_run_is_named(net):
    with Taps(net, ['unused']) as maps:
        net(IMAGE)
    with pytest.raises(TapError, match=r"'unused' saw nothing: its module ran 0 time"):
        maps['unused']


@pytest.mark.parametrize('name, text', [('split', 'the output is a tuple'),
                                        ('split[2]', 'has 2 outputs'),
                                        ('relu[0]', 'has one output')])
def test_an_output_of_another_kind_is_refused(net, name, text):
    with pytest.raises(TapError, match=text), Taps(net, [name]):
        net(IMAGE)


def test_no_hook_is_left_behind_even_after_an_error(net):
    with pytest.raises(RuntimeError), Taps(net, ['relu', 'head']):
        net(torch.rand(1, 7, 5, 5))
    assert not any(m._forward_hooks for m in net.modules())


def test_stop_leaves_the_forward_pass_after_the_last_tap(net):
    ran = []
    net.split.register_forward_hook(lambda *_: ran.append(1))
    with Taps(net, ['relu'], stop=True) as maps:
        net(IMAGE)
    assert not ran and maps['relu'].shape == (1, 4, 5, 5)
    assert not net.relu._forward_hooks


@pytest.mark.parametrize('text', ['a.b', 'a.0[1]', 'a#2', 'a#2[0]', 'a.b@pre', 'a#1[0]@pre'])
def test_a_tap_is_written_as_it_is_read(text):
    assert str(Tap.parse(text)) == text


@pytest.mark.parametrize('text', ['', 'a b', 'a[x]', 'a@post'])
def test_what_is_no_tap_is_refused(text):
    with pytest.raises(TapError, match='is not a module path'):
        Tap.parse(text)
