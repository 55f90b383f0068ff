"""The config inside a checkpoint is read, never run."""
import pytest
from mmengine.config import Config

from hgd_det.errors import UserError
from hgd_det.literal import read
from hgd_det.testing import tiny_ssd


def test_a_dumped_config_reads_as_what_it_was():
    values = dict(model=tiny_ssd(), a=-1, b=(1, 2.5, None), c=[True, 'x'], d={'x y': (-0.5,)}, e=dict(),
                  f=1e-3, g={3: 'three'})
    assert read(Config(values).pretty_text) == Config(values).to_dict()
    assert read('a = inf') == {'a': float('inf')}


@pytest.mark.parametrize('text', [
    'import os', 'a = __import__("os").system("true")', 'a = [x for x in (1, 2)]', 'a = b', 'a.b = 1',
    'a = dict(**{})', 'a = {**{}}', 'a = "%s" % 1', 'a = (lambda: 1)()', 'def f(): pass', 'a = b = 1',
    'a = f"{1}"', 'a = list((1,))', 'a = dict([(1, 2)])', 'a = -"x"', 'a = 2 ** 99',
])
def test_anything_but_plain_values_is_refused_and_not_run(text):
    with pytest.raises(UserError, match='more than plain values'):
        read(text)


@pytest.mark.parametrize('text', ['a = (', 'a\0 = 1', '(' * 100_000])
def test_what_does_not_parse_is_reported(text):
    with pytest.raises(UserError, match='cannot be parsed'):
        read(text)
