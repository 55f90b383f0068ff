"""Classes of a teacher that learned others: its scores in the student's order."""
import pytest
import torch
from mmengine.config import Config

from hgd_det.distill.classes import Regrouped, check_map, groups, names_in
from hgd_det.errors import UserError

MINE, THEIRS = ('cat', 'vehicle'), ('bus', 'dog', 'cat', 'car', 'tree')
MAP = {'vehicle': ['car', 'bus'], 'cat': 'cat'}


def test_groups_follow_the_students_order_and_not_the_maps():
    assert groups(MAP, MINE, THEIRS, 't') == [[2], [3, 0]]


def test_softmax_probabilities_add_up_and_what_nobody_asks_for_is_background():
    logits = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    found = Regrouped(groups(MAP, MINE, THEIRS, 't'), 6, sigmoid=False)(logits)
    p = logits.softmax(-1)
    wanted = torch.stack([p[..., 2], p[..., 3] + p[..., 0], p[..., 1] + p[..., 4] + p[..., 5]], -1)
    assert torch.allclose(found.softmax(-1), wanted, atol=1e-12)
    z64 = torch.float64
    for image in range(2):    # and value by value
        for anchor in range(7):
            z = logits[image, anchor].tolist()
            loop = [z[2], torch.tensor([z[3], z[0]], dtype=z64).logsumexp(0).item(),
                    torch.tensor([z[1], z[4], z[5]], dtype=z64).logsumexp(0).item()]
            assert found[image, anchor].tolist() == pytest.approx(loop, abs=1e-12)
    some = logits[:1, :2].detach().requires_grad_()
    assert torch.autograd.gradcheck(Regrouped([[2], [3, 0]], 6, False), some)


def test_sigmoid_scores_are_the_largest_of_a_group():
    logits = torch.randn(2, 7, 5)
    found = Regrouped([[2], [3, 0]], 5, sigmoid=True)(logits)
    assert torch.equal(found, torch.stack([logits[..., 2], logits[..., [3, 0]].amax(-1)], -1))


def test_the_same_list_in_another_order_is_put_in_order():
    logits = torch.randn(3, 4)
    found = Regrouped(groups(dict(a='a', b='b', c='c'), 'abc', 'cab', 't'), 4, sigmoid=False)(logits)
    assert torch.allclose(found, logits[:, [1, 2, 0, 3]])


def test_half_precision_is_added_up_in_float32():
    assert Regrouped([[2], [3, 0]], 6, False)(torch.randn(4, 6).half()).dtype == torch.float32


@pytest.mark.parametrize('mapping, said', [
    (dict(MAP, kat='tree'), "'kat'.*no such class; near names: cat"),
    (dict(cat='cta', vehicle='car'), "no class 'cta'; near names: cat"),
    (dict(cat='cat', vehicle=['car', 'cat']), "takes 'cat' of the teacher for 'cat' and for 'vehicle'"),
    (dict(vehicle='car'), "that it is 'cat', but a term reads its class scores"),
])
def test_maps_that_do_not_fit_are_refused_by_name(mapping, said):
    with pytest.raises(UserError, match=said):
        groups(mapping, MINE, THEIRS, 'model.teacher')


@pytest.mark.parametrize('mapping', [['cat'], {}, {'cat': 3}, {'cat': []}, {1: 'cat'}, 'cat'])
def test_what_is_no_map_of_names_is_refused(mapping):
    with pytest.raises(UserError, match="classes=.*write {'mine': 'theirs'"):
        check_map(mapping)


def test_a_config_names_its_classes_through_whatever_wraps_its_data_set():
    named = dict(type='VOCFolder', metainfo=dict(classes=('a', 'b')))
    assert names_in(dict(train_dataloader=dict(dataset=named))) == ('a', 'b')
    repeated = dict(type='RepeatDataset', dataset=named)
    assert names_in(dict(test_dataloader=dict(dataset=repeated))) == ('a', 'b')
    joined = dict(type='ConcatDataset', datasets=[named, named])
    assert names_in(Config(dict(train_dataloader=dict(dataset=joined)))) == ('a', 'b')
    assert len(names_in(dict(val_dataloader=dict(dataset=dict(type='CocoDataset'))))) == 80
    assert names_in(dict(model=dict(type='RetinaNet'))) is None
