"""Which stages of two detectors pair, for any lists of maps."""
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hgd_det.distill.stages import SELECTIONS, MapSpec, Survey, pair_stages, select_stages
from hgd_det.errors import UserError

SIDE = st.sampled_from([1, 2, 3, 5, 8, 10, 16, 19, 32, 38])
SQUARE = st.integers(1, 64).map(lambda side: (side, side))
SIZE = SIDE.map(lambda side: (side, side)) | st.tuples(SIDE, SIDE)


@st.composite
def surveys(draw, name='student', input_size=None, size=SIZE):
    shapes = draw(st.lists(st.tuples(size, st.integers(1, 512), st.booleans(), st.booleans()), max_size=9))
    # as in a network, from large to small
    shapes.sort(key=lambda shape: (-shape[0][0] * shape[0][1], shape[0]))
    maps = [MapSpec(f'{name}{i}', channels, size, source, activated,
                    before=f'{name}{i}@pre' if activated else None)
            for i, (size, channels, source, activated) in enumerate(shapes)]
    return Survey(name, input_size or draw(st.sampled_from([(64, 64), (76, 76)])), tuple(maps))


OPTIONS = st.fixed_dictionaries(dict(select=st.sampled_from(SELECTIONS), act=st.sampled_from(['pre', 'post']),
                                     unmatched=st.sampled_from(['ignore', 'resize'])))


def paired(student, teacher, **options):
    """The pairs, none where the two have no common stage."""
    try:
        return pair_stages(student, teacher, **options)
    except UserError as error:
        assert 'no common stage' in str(error)
        return []


def stages(view, options):
    chosen = select_stages(view, select=options['select'], act=options['act'])
    return [spec.tap for specs in chosen.values() for spec in specs]


@given(surveys(), st.sampled_from(['pre', 'post']))
def test_all_stages_are_those_by_default_and_more(view, act):
    every, some = (stages(view, dict(select=select, act=act)) for select in ('all', 'source'))
    assert set(some) <= set(every)


def descending(sizes):
    areas = [height * width for height, width in sizes]
    return areas == sorted(areas, reverse=True)


@given(surveys('student', (76, 76)), surveys('teacher', (76, 76)), OPTIONS)
def test_stages_pair_at_most_once_in_order_with_their_equals_and_names_of_their_own(
        student, teacher, options):
    pairs = paired(student, teacher, **options)
    for side, view in (('student', student), ('teacher', teacher)):
        taps = [getattr(pair, side).tap for pair in pairs]
        assert len(set(taps)) == len(taps) and set(taps) <= set(stages(view, options))
    assert len({pair.name for pair in pairs}) == len(pairs)
    assert descending([pair.teacher.size for pair in pairs])
    equal = [pair for pair in pairs if pair.student.size == pair.teacher.size]
    assert descending([pair.student.size for pair in equal])
    if options['unmatched'] == 'ignore':
        assert equal == pairs
    both = [select_stages(view, select=options['select'], act=options['act']) for view in (student, teacher)]
    # of a size that both have, as many stages pair as the poorer one has
    for size in both[0].keys() & both[1].keys():
        count = sum(pair.student.size == pair.teacher.size == size for pair in pairs)
        assert count == min(len(view[size]) for view in both)
    if options['unmatched'] == 'resize' and pairs:
        left = [set(view) - {getattr(pair, side).size for pair in pairs}
                for view, side in zip(both, ('student', 'teacher'), strict=True)]
        assert not left[0] or not left[1]


@given(surveys(), OPTIONS)
def test_a_detector_paired_with_itself_is_the_identity(view, options):
    pairs = paired(view, view, **options)
    assert all(pair.student == pair.teacher for pair in pairs)
    assert [pair.student.tap for pair in pairs] == stages(view, options)


@given(surveys('student', (64, 64), SQUARE), surveys('teacher', (128, 128), SQUARE), OPTIONS)
def test_inputs_of_different_size_pair_without_crossing(student, teacher, options):
    pairs = paired(student, teacher, **(options | dict(unmatched='ignore')))
    assert max(Counter(pair.student.tap for pair in pairs).values(), default=1) == 1
    assert max(Counter(pair.teacher.tap for pair in pairs).values(), default=1) == 1
    ranks = [student.rank(pair.student) for pair in pairs]
    assert ranks == sorted(ranks)
    assert all(abs(student.rank(pair.student) - teacher.rank(pair.teacher)) <= .3 for pair in pairs)


@given(surveys('student', (76, 76)), surveys('teacher', (76, 76)), st.lists(SIDE, max_size=3),
       st.integers(0, 40))
def test_a_choice_of_sizes_leaves_these_alone_or_is_refused_with_those_there_are(
        student, teacher, sizes, largest):
    everything = paired(student, teacher)
    if not everything:
        return
    within = [pair for pair in everything if max(pair.teacher.size) <= largest]
    wanted = [pair for pair in within if pair.teacher.size[0] in sizes]
    try:
        kept = pair_stages(student, teacher, sizes=sizes, max_size=largest)
    except UserError as error:
        missing = set(sizes) - {pair.teacher.size[0] for pair in within}
        assert missing and all(str(size) in str(error) for size in missing) or not wanted
    else:
        assert kept == wanted


@given(surveys('student', (76, 76)), surveys('teacher', (76, 76)))
def test_two_without_a_common_stage_are_refused_with_the_stages_of_both(student, teacher):
    if select_stages(student).keys() & select_stages(teacher).keys():
        return
    with pytest.raises(UserError, match='no common stage') as error:
        pair_stages(student, teacher)
    for view in (student, teacher):
        assert all(str(spec.size[0]) in str(error.value) for spec in view.maps)
