"""Every config below configs/ loads and builds, and every pair with every method; detectors that train alone
take one step."""
from copy import deepcopy
from functools import cache
from itertools import combinations
from pathlib import Path

import mmdet.models  # noqa: F401  (registers)
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

import hgd_det.registered  # noqa: F401
from hgd_det.experiments.tables import table
from hgd_det.models import count
from hgd_det.paths import find_method, names, read_config
from hgd_det.training.runner import READ, load_config

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT / 'configs') for path in (ROOT / 'configs').rglob('*.py'))
CONFIGS = [path.as_posix() for path in FILES if not {'_base_', 'methods', 'values'} & set(path.parts)]
PAIRS, METHODS = names('pairs'), names('methods')
# What needs heads that predict distributions stands on the pairs that have them
LD = {line.method for line in table('methods', 'shapes').lines if line.config == 'shapes_ld'}
COMBINATIONS = [(pair, method) for pair in PAIRS for method in METHODS
                if method not in LD or pair.endswith('_ld')]
# (file, pair, method): two lines that name a combination
NAMED = [(f'hgd/{pair}.py', pair, 'hgd') for pair in PAIRS if (ROOT / f'configs/hgd/{pair}.py').exists()] + [
    ('chen/ssd_half_voc.py', 'ssd_half_voc', 'chen'), ('ld/ssd_half_voc.py', 'ssd_half_voc_ld', 'ld'),
    ('combined/ssd_half_voc.py', 'ssd_half_voc_ld', 'combined')]


@cache
def _parsed(name):
    return Config.fromfile(ROOT / 'configs' / name)


def load(name):
    init_default_scope('mmdet')
    return deepcopy(_parsed(name))


ALONE = [name for name in CONFIGS if _parsed(name).model.type == 'SingleStageDetector']


def build(cfg):
    return MODELS.build(cfg.model)


def sample(size, classes):
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.6], [0.4, 0.1, 0.9, 0.95]]) * size
    labels = torch.tensor([0, classes - 1])
    return DetDataSample(
        metainfo=dict(img_shape=(size, size), ori_shape=(size, size), scale_factor=(1.0, 1.0),
                      batch_input_shape=(size, size), pad_shape=(size, size), img_id=0),
        gt_instances=InstanceData(bboxes=boxes, labels=labels),
        ignored_instances=InstanceData(bboxes=boxes[:0], labels=labels[:0]))


def reads_the_maps_it_gets(cfg, model):
    head = cfg.model.bbox_head
    maps = count(model.to('meta'), cfg.input_size).maps
    assert [channels for _, channels, _, _ in maps] == list(head.in_channels)
    for (_, _, height, _), stride in zip(maps, head.anchor_generator.strides, strict=True):
        assert abs(cfg.input_size / stride - height) < 1, (height, stride)


def test_there_are_configs():
    assert len(CONFIGS) >= 30 and len(ALONE) >= 11 and len(PAIRS) >= 9 and len(METHODS) >= 24
    assert LD == {'ld', 'combined'}


@pytest.mark.parametrize('name', CONFIGS)
def test_it_loads_and_its_model_builds(name):
    cfg = load(name)
    model = build(cfg)
    if name in ALONE:
        reads_the_maps_it_gets(cfg, model)
    assert any(p.requires_grad for p in model.parameters())
    assert cfg.input_size > 0
    head = getattr(model, 'student', model).bbox_head
    metainfo = cfg.test_dataloader.dataset.get('metainfo') or {}
    if 'classes' in metainfo:
        assert head.num_classes == len(metainfo['classes'])


def opening(path):
    """The comment at the top of a config."""
    lines = (ROOT / 'configs' / path).read_text().splitlines()
    return lines[:next(i for i, line in enumerate(lines) if not line.startswith('#'))]


@pytest.mark.parametrize('name', CONFIGS)
def test_it_starts_with_the_command_that_runs_it(name):
    verb = 'test' if _parsed(name).model.type == 'Ensemble' else 'train'
    command = f'python tools/{verb}.py configs/{name}' if not name.startswith('pairs/') else \
        f'hgd-det train {Path(name).stem} --method '
    assert any(command in line for line in opening(name))


@pytest.mark.parametrize('method', METHODS)
def test_so_does_a_method(method):
    line = next(line for line in opening(f'methods/{method}.py') if 'hgd-det train' in line)
    pair = line.split()[3]
    assert line.endswith(f'hgd-det train {pair} --method {method}') and (pair, method) in COMBINATIONS


def settings(cfg):
    """What is read of a config, without the variables that its lines have used up."""
    return {key: value for key, value in cfg._cfg_dict.to_dict().items() if key in READ}


@pytest.mark.parametrize('pair', PAIRS)
def test_every_method_makes_a_whole_config_of_a_pair(pair):
    alone = read_config(pair)
    student = settings(alone)['model']['student']
    for method in [method for one, method in COMBINATIONS if one == pair]:
        own, cfg = read_config(find_method(method)), load_config(pair, method=method)
        model = settings(cfg)['model']
        assert model['terms'].keys() == own.terms.keys() and model['student'] == student, method
        assert {name: term['type'] for name, term in model['terms'].items()} \
            == {name: term.type for name, term in own.terms.items()}, method
        assert ('teacher' in model) == (own.get('teacher', 'pair') is not None), method
        assert cfg.work_dir == f'work_dirs/{pair}/{method}' and 'values' not in cfg, method
        # beside the terms a method changes what its file, or the values of the pair, say and no more
        told = own.keys() | alone.get('values', {}).get(method, {}).keys()
        changed = {key for key, value in settings(cfg).items()
                   if key not in ('model', 'work_dir') and value != settings(alone).get(key)}
        assert changed <= told, method


BUILT = [(pair, method) for pair, method in COMBINATIONS
         if method == 'hgd' or pair == ('shapes_ld' if method in LD else 'shapes')]


@pytest.mark.parametrize('pair, method', BUILT, ids='-'.join)
def test_it_builds_with_every_method(pair, method):
    init_default_scope('mmdet')
    model = build(load_config(pair, method=method))
    assert sorted(model.distill) == sorted(read_config(find_method(method)).terms)


@pytest.mark.slow
@pytest.mark.parametrize('pair, method', [each for each in COMBINATIONS if each not in BUILT], ids='-'.join)
def test_so_does_every_other_pair(pair, method):
    test_it_builds_with_every_method(pair, method)


@pytest.mark.parametrize('name, pair, method', NAMED)
def test_a_named_combination_is_that_combination(name, pair, method):
    lines = [line for line in (ROOT / 'configs' / name).read_text().splitlines() if line and line[0] != '#']
    assert len(lines) <= 4
    assert settings(load(name)) == settings(read_config(pair, method))
    assert Config.fromstring(read_config(pair, method).pretty_text, '.py')._cfg_dict \
        == read_config(pair, method)._cfg_dict    # what a run leaves in its folder is all of it


def test_every_file_of_terms_is_a_named_combination_or_a_method():
    assert {name for name, *_ in NAMED} == {
        name for name in CONFIGS if _parsed(name).model.type == 'Distiller' and not name.startswith('pairs/')}


@pytest.mark.parametrize('pair', PAIRS)
def test_the_values_of_a_pair_are_of_methods_and_of_terms_that_they_have(pair):
    for method, value in read_config(pair).get('values', {}).items():
        terms = read_config(find_method(method)).terms
        assert value and value.get('terms', {}).keys() <= terms.keys(), method


def test_no_config_repeats_ten_lines_of_another():
    lines = {path: [line for line in map(str.strip, (ROOT / 'configs' / path).read_text().splitlines())
                    if line and line[0] != '#'] for path in FILES}
    tens = {path: {tuple(of[i:i + 10]) for i in range(len(of) - 9)} for path, of in lines.items()}
    assert not [(a, b) for a, b in combinations(FILES, 2) if tens[a] & tens[b]]


@pytest.mark.parametrize('name', ALONE)
def test_a_detector_takes_one_step(name):
    cfg = load(name)
    cfg.model.backbone.pop('init_cfg', None)  # no ImageNet weights here
    torch.manual_seed(0)
    model = build(cfg)
    model.init_weights()
    model.train()
    # BatchNorm on a 1x1 map cannot train on one image, which is why that config drops such batches
    batch = 2 if cfg.train_dataloader.get('drop_last') else 1
    size = cfg.input_size
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size), dtype=np.uint8)
    data = model.data_preprocessor(dict(
        inputs=[torch.from_numpy(pixels)] * batch,
        data_samples=[sample(size, model.bbox_head.num_classes) for _ in range(batch)]), True)
    losses = model(**data, mode='loss')
    assert {'loss_cls', 'loss_bbox'} <= set(losses)
    total, _ = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(p.grad.abs().sum() > 0 for name, p in model.named_parameters()
               if name.endswith('weight') and p.ndim == 4 and name.startswith('backbone'))


def test_pretrained_weights_can_be_given_and_left_out_by_cfg_options():
    cfg = load('ssd/ssd300_vgg16_voc.py')
    cfg.merge_from_dict({'model.backbone.init_cfg.checkpoint': 'mine.pth'})
    assert build(cfg).backbone.pretrained == 'mine.pth'
    cfg.merge_from_dict({'model.backbone.init_cfg': None})
    assert build(cfg).backbone.pretrained is None


def test_the_shapes_student_has_half_the_teachers_channels_and_the_same_anchors():
    student, teacher = (build(load(f'shapes/{who}.py')) for who in ('student', 'teacher'))
    assert [2 * c for c in student.backbone.out_channels] == list(teacher.backbone.out_channels)
    assert [2 * c for c in student.bbox_head.in_channels] == teacher.bbox_head.in_channels
    for one, other in zip(student.bbox_head.prior_generator.base_anchors,
                          teacher.bbox_head.prior_generator.base_anchors, strict=True):
        assert torch.equal(one, other)
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in student.backbone.modules())


def test_the_shapes_configs_name_the_classes_of_the_data_set():
    from hgd_det.data.shapes import CLASSES
    for name in ('teacher', 'student', 'teacher_coco'):
        cfg = load(f'shapes/{name}.py')
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            assert tuple(loader.dataset.metainfo.classes) == CLASSES
