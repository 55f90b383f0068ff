from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from mmengine.config import ConfigDict

from hgd_det.distill.options import check
from hgd_det.errors import UserError

if TYPE_CHECKING:
    from nowhere import Unknown


def taker(path: str | Path, number: float = 1, whole: int | None = None, flag: bool = False,
          sizes: Sequence[int] | None = None, pair: tuple[float, float] = (0, 1),
          kind: Literal['a', 'b'] = 'a', entries: list[dict] = (), anything=None):
    pass


@pytest.mark.parametrize('given', [
    dict(path='x'), dict(path=Path('x'), number=1, whole=None), dict(path='x', number=.5, flag=True),
    dict(path='x', sizes=[1, 2], pair=[0, .5]), dict(path='x', sizes=(), kind='b'),
    dict(path='x', entries=[ConfigDict(a=1)], anything=object())])
def test_what_the_annotations_say_is_taken(given):
    check('it', taker, given)


@pytest.mark.parametrize('wrong, text', [
    (dict(path=3), 'path=3; give a string or a path'), (dict(number='1'), "number='1'; give a number"),
    (dict(number=True), 'number=True; give a number'), (dict(number=None), 'number=None'),
    (dict(whole=1.5), 'whole=1.5; give a whole number or None'), (dict(flag=1), 'give True or False'),
    (dict(sizes=3), 'give a list'), (dict(sizes='12'), 'give a list'), (dict(sizes=['1']), 'number each'),
    (dict(pair=[1]), 'pair='), (dict(pair=[1, 'x']), 'a number, a number'), (dict(kind='c'), "'a' or 'b'"),
    (dict(entries=['x']), 'a dict each'), (dict(nunber=1), "no option 'nunber'; did you mean 'number'")])
def test_another_type_or_name_is_refused_with_what_is_wanted(wrong, text):
    with pytest.raises(UserError, match='it') as error:
        check('it', taker, {'path': 'x', **wrong})
    assert text in str(error.value)


def test_an_option_that_must_be_given_is_asked_for():
    with pytest.raises(UserError, match='it needs path'):
        check('it', taker, {})


def test_names_that_only_a_type_checker_knows_are_not_judged():
    def taker(a: Unknown, b: int = 0):
        pass
    check('it', taker, dict(a=1, b='x'))
