"""What configs get wrong: a name that is nearly right is told, and any value at all is taken or refused."""
import inspect
import json
import math
import typing
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from mmengine.config import Config

import hgd_det.registered  # noqa: F401
from hgd_det.data import sources
from hgd_det.distill import options
from hgd_det.distill.options import parameters
from hgd_det.distill.registry import TERMS, build_term, split_entry
from hgd_det.distill.schedule import Schedule
from hgd_det.errors import UserError
from hgd_det.training import mistakes, runner

pytestmark = pytest.mark.thorough

KNOWN = sorted(name for name, kind in TERMS.module_dict.items() if kind.__module__.startswith('hgd_det.'))
TERM = st.sampled_from(KNOWN)
LETTERS = 'abcdefghijklmnopqrstuvwxyz_'
PLAIN = st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=5) \
    | st.just(10 ** 400)
ANYTHING = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('abtype', max_size=4), inner,
                                                                       max_size=3), max_leaves=4)


def accepted(name):
    return parameters(TERMS.module_dict[name])[0]


@st.composite
def slips(draw, names):
    """``(word, misspelt)``: one letter less, more or other, or two exchanged."""
    word = draw(names)
    at, letter = draw(st.integers(0, len(word) - 1)), draw(st.sampled_from(LETTERS))
    end = word[at + 1:]
    return word, word[:at] + draw(
        st.sampled_from([end, letter + end, letter + word[at:], end[:1] + word[at] + end[1:]]))


def edits(a, b):
    """Levenshtein's distance, an exchange of neighbours counting once."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        rows.append([i])
        for j, y in enumerate(b, 1):
            cost = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (x != y))
            if i > 1 and j > 1 and a[i - 2:i] == b[j - 2:j][::-1]:
                cost = min(cost, rows[i - 2][j - 2] + 1)
            rows[i].append(cost)
    return rows[-1][-1]


def meant(call, wrong):
    """The name that the refusal suggests; it is as near to the misspelt one as the right one was."""
    with pytest.raises(UserError) as error:
        call()
    text = str(error.value)
    assert repr(wrong) in text
    suggestion = text.partition("did you mean '")[2].partition("'")[0]
    assert suggestion and edits(suggestion.lower(), wrong.lower()) <= 1, text
    return suggestion


@given(slips(TERM))
def test_a_misspelt_term_is_named_with_the_one_that_was_meant(slip):
    _, wrong = slip
    assume(wrong not in TERMS.module_dict)
    assert meant(lambda: split_entry('a', dict(type=wrong)), wrong) in TERMS.module_dict


@given(TERM, st.data())
def test_a_misspelt_option_of_a_term_or_of_its_schedule_is_named_with_the_one_that_was_meant(term, data):
    names = [*accepted(term), *Schedule.KEYS]
    _, wrong = data.draw(slips(st.sampled_from(names)))
    assume(wrong not in names)
    rest, _ = split_entry('a', {'type': term, wrong: 1})
    assert meant(lambda: build_term('a', rest), wrong) in names


@given(slips(st.sampled_from(sorted(runner.READ))))
def test_a_misspelt_setting_of_a_config_is_named_with_the_one_that_was_meant(slip):
    _, wrong = slip
    assume(wrong not in runner.READ and wrong and not wrong.endswith('_pipeline'))
    assert meant(lambda: runner._check_names(Config({wrong: 1}), 'a.py'), wrong) in runner.READ


@given(st.sampled_from(['optimizer', 'hook', 'transform', 'dataset', 'model']), st.data())
def test_a_misspelt_class_is_named_with_near_ones(kind, data):
    known = mistakes._registered(kind)
    _, wrong = data.draw(slips(st.sampled_from(sorted(set(known)))))
    assume(wrong not in known and wrong)
    text = mistakes._no_such(kind, wrong)
    near = text.partition('near names: ')[2].split(', ')
    assert near[0] in known and edits(near[0].lower(), wrong.lower()) <= 1


def fitting(hint):
    """Values of an option's type."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return st.sampled_from(inside)
    if inside and origin in (typing.Union, type(int | None)):
        return st.one_of([fitting(one) for one in inside])
    kind = origin or hint
    if inspect.isclass(kind) and issubclass(kind, (Sequence, tuple)) and kind is not str:
        if kind is tuple and inside and Ellipsis not in inside:
            return st.tuples(*map(fitting, inside))
        return st.lists(fitting(inside[0]) if inside else ANYTHING, max_size=3)
    if inspect.isclass(kind) and issubclass(kind, Mapping):
        return st.dictionaries(st.text('abcdefg', max_size=7), ANYTHING, max_size=2)
    return {bool: st.booleans(), int: st.integers(-3, 9), float: st.floats() | st.integers(-3, 9),
            str: st.text(max_size=6), type(None): st.none()}.get(kind, ANYTHING)


@given(TERM, st.data())
def test_an_option_of_another_type_is_refused_and_any_of_its_own_is_taken_or_refused(term, data):
    hints = options._hints(TERMS.module_dict[term])
    names = sorted(hints.keys() & accepted(term).keys())
    assume(names)
    name = data.draw(st.sampled_from(names))
    value = data.draw(ANYTHING | fitting(hints[name]))
    try:
        build_term('a', {'type': term, name: value})
    except UserError as error:
        assert str(error)
    else:
        assert options._fits(value, hints[name])


@given(TERM, st.data())
def test_the_defaults_of_a_term_may_all_be_written_out(term, data):
    defaults = {name: parameter.default for name, parameter in accepted(term).items()
                if parameter.default is not parameter.empty}
    chosen = data.draw(st.sets(st.sampled_from(sorted(defaults)))) if defaults else ()
    needed = [name for name, parameter in accepted(term).items() if parameter.default is parameter.empty]
    assume(not needed)
    schedule = data.draw(st.fixed_dictionaries({}, optional=dict(
        weight=st.floats(0, 1e6) | st.integers(0, 9) | st.just('auto'), warmup=st.floats(0, .9),
        ramp=st.integers(0, 9))))
    rest, made = split_entry('a', {'type': term, **{name: defaults[name] for name in chosen}, **schedule})
    assert isinstance(build_term('a', rest), TERMS.module_dict[term])
    assert all(getattr(made, name) == value for name, value in schedule.items())


@given(ANYTHING, TERM, st.sampled_from(['type', *Schedule.KEYS]),
       st.sampled_from(['a', '', 'a.b', 'a b', 'loss']))
def test_any_entry_of_terms_is_taken_or_refused(value, term, key, name):
    for entry in (value, {'type': term, key: value}):
        try:
            _, schedule = split_entry(name, entry)
        except UserError as error:
            assert str(error)
        else:
            assert schedule.auto or math.isfinite(float(schedule.weight))


SECTION = ANYTHING | st.fixed_dictionaries({}, optional=dict.fromkeys(
    ('type', 'batch_size', 'dataset', 'optimizer', 'student'), ANYTHING))
NAME = st.sampled_from([*mistakes.SECTIONS, 'model', 'custom_hooks', 'test_evaluator'])


@given(st.dictionaries(NAME, SECTION))
def test_any_sections_of_a_config_are_taken_or_refused(sections):
    try:
        mistakes.check_config(Config({'model': dict(type='X'), **sections}))
    except UserError as error:
        assert str(error)


CLASSES = ANYTHING | st.fixed_dictionaries(dict(classes=ANYTHING))
DATASET = ANYTHING | st.fixed_dictionaries(
    dict(type=st.sampled_from(sources.VOC_TYPES + sources.COCO_TYPES)),
    optional=dict(data_root=ANYTHING, ann_file=ANYTHING, data_prefix=ANYTHING, metainfo=CLASSES,
                  datasets=ANYTHING, dataset=ANYTHING, img_subdir=ANYTHING))
LOADER = ANYTHING | st.fixed_dictionaries(dict(dataset=DATASET))


@given(st.fixed_dictionaries({}, optional=dict(train_dataloader=LOADER, val_dataloader=LOADER)))
def test_the_data_of_any_config_is_found_or_refused(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / 'any.json'
    path.write_text(json.dumps(config))
    try:
        found = sources.from_config(path)
    except UserError as error:
        assert str(error)
    else:
        assert found and all(isinstance(one, sources.Source) for one in found)


OPTION = st.text('ab.=[](),\'"0 1-é', max_size=12) \
    | st.from_regex(r'[a-c](\.[a-c0-2]){0,3}=[ab01\[\](),.]{0,6}', fullmatch=True)


@example(['a=[)'])
@example(['a=(,]'])
@example(['a=](,'])
@example(['a=[1,(2]'])
@given(st.lists(OPTION, min_size=1, max_size=2))
def test_any_options_of_the_command_line_change_a_config_or_are_refused(given_options):
    cfg = Config(dict(a=dict(b=1, c=[1, dict(a=2)]), b=[dict(c=1), 2], c='x'))
    try:
        runner.change(cfg, given_options, 'a.py')
    except UserError as error:
        assert '--cfg-options' in str(error)
