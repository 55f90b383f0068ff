from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict

import hgd_det.registered  # noqa: F401
from hgd_det.distill.stages import MapSpec, Survey, explicit_pairs, pair_stages, select_stages, survey
from hgd_det.distill.taps import TapError, Taps
from hgd_det.errors import UserError
from hgd_det.testing import make_survey, tiny_ssd

register_all_modules(init_default_scope=True)
ROOT = Path(__file__).parents[2]
SIZES = [96, 48, 24, 12, 6, 3, 1]


@pytest.fixture(scope='module')
def ssd():
    return MODELS.build(ConfigDict(tiny_ssd()))


@pytest.fixture(scope='module')
def view(ssd):
    return survey(ssd, (96, 96))


def sizes(pairs):
    return [p.teacher.size[0] for p in pairs]


def test_the_dry_run_finds_every_stage_and_leaves_no_trace(ssd, view):
    assert sizes(pair_stages(view, view)) == SIZES
    assert not any(m._forward_hooks for m in ssd.modules())
    assert ssd.training and all(m.training for m in ssd.modules())


def test_every_named_tap_gives_the_map_the_dry_run_described(ssd, view):
    image = torch.rand(2, 3, 96, 96)
    for options in (dict(), dict(act='pre'), dict(l2norm='pre'), dict(select='literal'), dict(select='all')):
        specs = [p.student for p in pair_stages(view, view, **options)]
        with Taps(ssd, [s.tap for s in specs]) as maps:
            ssd.extract_feat(image)
        for spec in specs:
            assert maps[spec.tap].shape == (2, spec.channels, *spec.size)


def test_source_stages_are_what_the_heads_read(ssd, view):
    stages = select_stages(view)
    heads = [s[-1].tap for s in stages.values() if s[-1].source]
    assert heads == ['neck[0]', 'neck[1]', 'neck[2]', 'neck[3]']
    with Taps(ssd, heads) as maps:
        outs = ssd.extract_feat(torch.rand(2, 3, 96, 96))
    assert all(torch.equal(maps[tap], out) for tap, out in zip(heads, outs, strict=True))


# METHODS, A1: the taps of the paper's networks at 300 px, before the maps that heads read
PAPER = {
    'configs/ssd/ssd300_vgg16_voc.py': {300: ('backbone.features.3', 64), 150: ('backbone.features.8', 128),
                                     75: ('backbone.features.15', 256)},
    'configs/ssd/ssd300_half_voc.py': {300: ('backbone.features.3', 32), 150: ('backbone.features.8', 64),
                                    75: ('backbone.features.15', 128)},
    'configs/ssd/ssd300_vgg11_voc.py': {300: ('backbone.features.1', 64), 150: ('backbone.features.4', 128),
                                     75: ('backbone.features.9', 256)},
    'configs/ssd/ssd300_mobilenet_voc.py': {150: ('backbone.features.1', 64),
                                            75: ('backbone.features.3', 128)},
}


@pytest.mark.parametrize('path', PAPER)
def test_the_papers_networks_have_the_papers_stages(path):
    model = Config.fromfile(ROOT / path).model
    model.backbone.init_cfg = None
    found = select_stages(survey(MODELS.build(model), (300, 300)))
    early = {size[0]: (specs[-1].tap, specs[-1].channels) for size, specs in found.items() if size[0] > 38}
    assert early == PAPER[path]
    assert [(size[0], specs[-1].tap) for size, specs in found.items() if size[0] <= 38] == [
        (size, f'neck[{i}]') for i, size in enumerate((38, 19, 10, 5, 3, 1))]


def test_literal_selection_ends_in_the_bottlenecks(view):
    taps = [s[-1].tap for s in select_stages(view, select='literal').values()]
    assert taps[3:] == ['neck[0]', 'neck.extra_layers.0.0', 'neck.extra_layers.1.0', 'neck[3]']


def test_pre_activation_differs_from_post_by_the_relu(ssd, view):
    pairs = {p.name: p.student for p in pair_stages(view, view, act='pre')}
    post = {p.name: p.student for p in pair_stages(view, view)}
    names = [n for n in pairs if pairs[n].tap != post[n].tap]
    assert names == ['s96', 's48', 's24', 's6', 's3', 's1']  # 12x12 is an L2Norm: no activation
    with Taps(ssd, [pairs[n].tap for n in names] + [post[n].tap for n in names]) as maps:
        ssd.extract_feat(torch.rand(2, 3, 96, 96))
    for n in names:
        assert torch.equal(maps[pairs[n].tap].relu(), maps[post[n].tap])


def test_all_features_pair_from_the_end_of_each_size(view):
    pairs = pair_stages(make_survey({'a': (4, 38), 'b': (4, 38), 'c': (4, 19)}),
                        make_survey({'x': (8, 38), 'y': (8, 38), 'z': (8, 38), 'w': (8, 19)}), select='all')
    assert [(p.student.tap, p.teacher.tap) for p in pairs] == [('a', 'y'), ('b', 'z'), ('c', 'w')]
    assert len(pair_stages(view, view, select='all')) == 13 + 2 + 4 + 1  # convolutions, fc6-7, extras, L2Norm


def test_unmatched_sizes_are_ignored_or_resized():
    student = make_survey({'a': (4, 38), 'b': (4, 2)})
    teacher = make_survey({'x': (8, 38), 'y': (8, 3)})
    assert sizes(pair_stages(student, teacher)) == [38]
    assert sizes(pair_stages(student, teacher, unmatched='resize')) == [38, 3]


def test_inputs_of_different_size_pair_by_downsampling():
    student = make_survey({'a': (4, 75), 'b': (4, 38)}, input_size=300)
    teacher = make_survey({'x': (8, 128), 'y': (8, 64)}, input_size=512)
    assert [(p.student.tap, p.teacher.tap) for p in pair_stages(student, teacher)] == [('a', 'x'), ('b', 'y')]


def test_pairs_of_unequal_size_do_not_cross():
    student = make_survey({'a': (4, 64), 'b': (4, 56)}, input_size=512)
    teacher = make_survey({'x': (8, 33), 'y': (8, 31)}, input_size=256)  # x is the nearest to both
    for options in (dict(), dict(unmatched='resize')):
        pairs = pair_stages(student, teacher, **options)
        assert [(p.student.tap, p.teacher.tap) for p in pairs] == [('a', 'x'), ('b', 'y')]
    student = make_survey({'a': (4, 38), 'b': (4, 21), 'c': (4, 17)})
    teacher = make_survey({'x': (8, 38), 'y': (8, 40), 'z': (8, 20)})
    pairs = pair_stages(student, teacher, unmatched='resize')
    assert [(p.student.tap, p.teacher.tap) for p in pairs] == [('b', 'y'), ('a', 'x'), ('c', 'z')]


def test_pairs_of_one_height_have_names_of_their_own():
    maps = tuple(MapSpec(tap, 4, size) for tap, size in dict(a=(10, 20), b=(10, 10), c=(5, 5)).items())
    view = Survey('student', (40, 80), maps)
    assert [p.name for p in pair_stages(view, view)] == ['s10x20', 's10x10', 's5']


@pytest.mark.parametrize('options, text', [
    (dict(sizes=(40,)), r'stages \[40\] do not exist; there are \[96, 48'),
    (dict(max_size=0), 'leaves no stage'), (dict(select='last'), "select='last'"),
    (dict(act='both'), "act='both'"), (dict(unmatched='drop'), "unmatched='drop'"),
])
def test_a_choice_that_leaves_nothing_is_refused(view, options, text):
    with pytest.raises(UserError, match=text):
        pair_stages(view, view, **options)


def test_detectors_without_a_common_stage_are_refused():
    with pytest.raises(UserError, match=r'no common stage: student sizes \[38\], teacher sizes \[40\]'):
        pair_stages(make_survey({'a': (4, 38)}), make_survey({'x': (4, 40)}))


def test_pairs_can_be_named_and_inner_modules_too(ssd, view):
    pairs = explicit_pairs(view, view, (ssd, ssd), [
        dict(student='backbone.features.5', teacher='neck[1]'),
        dict(student='neck.extra_layers.0.1.bn@pre', teacher='backbone.features.0@pre')])
    assert [(p.student.channels, p.student.size[0]) for p in pairs] == [(4, 96), (16, 3)]
    assert [p.teacher.channels for p in pairs] == [64, 4]
    with pytest.raises(TapError, match='near names: .*neck'):
        explicit_pairs(view, view, (ssd, ssd), [dict(student='nek', teacher='neck[0]')])
