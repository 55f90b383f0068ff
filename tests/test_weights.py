import collections

import pytest
import torch
from torch import nn

from hgd_det.errors import UserError
from hgd_det.weights import load_into, student_state_dict


def test_the_students_weights_are_found_without_wrapper_and_without_what_trained_them():
    weights = collections.OrderedDict({'module.a': torch.zeros(1),
                                       'module.distill.hgd.w': torch.ones(1), 'b': torch.ones(2)})
    weights._metadata = {'': {'version': 2}}
    for content in (weights, {'state_dict': weights, 'meta': {}}, {'model': weights}):
        found = student_state_dict(content)
        assert list(found) == ['a', 'b']
    assert found._metadata == weights._metadata
    with pytest.raises(UserError, match='no weights; its keys are meta'):
        student_state_dict({'meta': {}})


def test_weights_that_do_not_fit_are_listed_by_kind():
    model = nn.Sequential(*[nn.Linear(2, 2) for _ in range(6)])
    weights = model.state_dict()
    wrong = {**{k: v for k, v in weights.items() if k[0] not in '01234'}, '5.bias': torch.zeros(7),
             'z': torch.zeros(1)}
    with pytest.raises(UserError) as error:
        load_into(model, wrong, what='teacher x.pth')
    text = str(error.value)
    assert 'teacher x.pth does not fit' in text
    assert '10 missing: 0.weight, 0.bias, 1.weight' in text and 'and 2 more' in text
    assert '1 unexpected: z' in text and '1 misshaped: 5.bias (7 given, 2 wanted)' in text


def test_weights_that_fit_are_copied_and_differences_can_be_allowed():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    other = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).state_dict()
    del other['1.num_batches_tracked']  # files of old versions lack it
    assert not load_into(model, other, what='x')
    assert all(torch.equal(model.state_dict()[k], v) for k, v in other.items())
    difference = load_into(model, {'0.bias': torch.ones(2), '0.weight': torch.ones(3)}, what='x',
                           strict=False)
    assert model[0].bias.tolist() == [1, 1]
    assert difference.misshaped == ['0.weight (3 given, 2x2 wanted)']
    assert '1.bias' in difference.missing
