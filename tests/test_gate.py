"""The gate for configs out of files, over everything that a registry could find by importing it."""
import inspect
import re
import sys

import mmdet.registry
import mmengine.registry
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import Registry

from hgd_det import gate
from hgd_det.checkpoint import trust_checkpoints
from hgd_det.errors import UserError
from hgd_det.gate import OTHERS, REFUSED, Admitted, Refused, admit, names, sealed
from hgd_det.paths import ROOT
from hgd_det.testing import tiny_ssd

pytestmark = pytest.mark.thorough

SSD = 'SingleStageDetector'
REGISTRIES = {f'{module.__name__.partition(".")[0]}.{name}': value
              for module in (mmengine.registry, mmdet.registry) for name, value in vars(module).items()
              if isinstance(value, Registry) and not name.startswith('MMENGINE')}
# a place in a config for every part of one: the dict whose `type` is given there, and the part it belongs to
PLACES = {
    'the model': ('model', lambda kind: dict(model=kind)),
    'a backbone': ('model', lambda kind: dict(model=dict(type='SingleStageDetector', backbone=kind))),
    'a loss in a list': ('model', lambda kind: dict(model=dict(type=SSD, heads=[[dict(loss=kind)]]))),
    'an assigner': ('model', lambda kind: dict(model=dict(type=SSD, train_cfg=dict(assigner=kind)))),
    'initial weights': ('model', lambda kind: dict(model=dict(type=SSD, init_cfg=[kind]))),
    'a term': ('terms', lambda kind: dict(model=dict(type='Distiller', terms=dict(a=kind)))),
    'a suppression': ('nms', lambda kind: dict(model=dict(type=SSD, test_cfg=dict(nms=kind)))),
    'a suppression of proposals': (
        'nms', lambda kind: dict(model=dict(type=SSD, test_cfg=dict(rpn=dict(nms_cfg=kind))))),
    'a RoI layer': ('roi', lambda kind: dict(model=dict(type=SSD, roi_layer=kind))),
    'a data set': ('data', lambda kind: dict(test_dataloader=dict(dataset=kind))),
    'a data set within': ('data', lambda kind: dict(test_dataloader=dict(dataset=dict(datasets=[kind])))),
    'a sampler': ('data', lambda kind: dict(test_dataloader=dict(sampler=kind))),
    'a collation': ('data', lambda kind: dict(test_dataloader=dict(collate_fn=kind))),
    'a transform': ('data', lambda kind: dict(test_dataloader=dict(dataset=dict(pipeline=[kind])))),
    'a transform within': ('pipeline', lambda kind: dict(test_pipeline=[dict(transforms=[[kind]])])),
}
KNOWN = {'model': gate.MODEL, 'terms': ('TERMS',), 'data': gate.DATA, 'pipeline': ('TRANSFORMS',),
         'nms': (), 'roi': ()}


def taken(part: str) -> set[str]:
    listed = dict(nms=gate.NMS, roi=gate.ROI).get(part, ())
    return (names(*KNOWN[part]) - (REFUSED if part != 'terms' else set())) | set(listed)


def passes(values: dict) -> bool:
    try:
        admit({'model': dict(type=SSD), **values}, 'x.pth')
    except Refused:
        return False
    return True


def reached(registry: Registry) -> set[str]:
    """All that finds something in a registry: its names, with each scope, and as what they are, by import."""
    registry.import_from_location()
    found = set()
    for name, thing in registry.module_dict.items():
        found |= {name, *(f'{scope}.{name}' for scope in ('mmdet', 'mmengine', 'mmcv', 'torch', '.', ''))}
        found |= {f'{thing.__module__}.{getattr(thing, "__qualname__", name)}', thing.__module__}
        found.add(thing.__module__.partition('.')[0])
    return found


@pytest.mark.parametrize('place', PLACES)
@pytest.mark.parametrize('registry', REGISTRIES)
def test_only_the_plain_names_of_its_registries_are_let_in(registry, place):
    part, at = PLACES[place]
    known, asked = taken(part), reached(REGISTRIES[registry])
    for name in asked - known:
        assert not passes(at(dict(type=name))), name
    for name in asked & known:
        assert passes(at(dict(type=name))), name


@pytest.mark.parametrize('place', PLACES)
def test_nothing_that_can_be_imported_is_let_in(place):
    part, at = PLACES[place]
    modules = {*sys.stdlib_module_names, *sys.modules}
    torchs = {f'{module.__name__}.{name}' for name, module in
              ((name, module) for module in (torch, torch.nn, torch.optim, torch.hub, torch.utils.data)
               for name in vars(module))}
    odd = {'', ' ', '.', '..', 'os.system', 'builtins.eval', 'builtins.exec', "__import__('os')", 'nms;evil',
           'nms if 1 else 2', 'lambda: 0', 'ＲesNet', 'nms\n', ' nms', 'exec', 'eval', 'NMSop', 'soft_nms()',
           'mmdet::x'}
    for name in (modules | torchs | odd) - taken(part):
        assert not passes(at(dict(type=name))), name
    for kind in (None, 1, ['ResNet'], dict(type='ResNet'), ('ResNet',), b'ResNet', torch.nn.Conv2d, print):
        assert not passes(at(dict(type=kind))), kind


def test_there_are_registries_and_names_to_ask_for():
    assert len(REGISTRIES) > 40 and sum(len(reached(each)) for each in REGISTRIES.values()) > 3000
    assert {'mmengine.MODEL_WRAPPERS', 'mmengine.HOOKS', 'mmdet.METRICS'} <= REGISTRIES.keys()


@pytest.mark.parametrize('registry', REGISTRIES)
def test_parts_that_no_verb_builds_are_left_out_where_they_are_not_known(registry):
    for part, registries in OTHERS.items():
        if part == 'default_scope':    # a file of another scope is refused
            continue
        known = names(*registries) - REFUSED if registries else set()
        for name in reached(REGISTRIES[registry]) - known:
            for value in (dict(type=name), [dict(type=name)], dict(deep=dict(type=name))):
                assert part not in admit({'model': dict(type=SSD), part: value}, 'x.pth'), (part, name)


@pytest.mark.parametrize('name', [
    'visualizer', 'vis_backends', 'model_wrapper_cfg', 'runner_type', 'tta_model', 'custom_imports', 'resume',
    'load_from', 'work_dir', 'launcher', '_base_', 'filename', 'hooks', 'compile', 'strategy', 'data_root'])
def test_what_no_verb_reads_stays_outside(name):
    assert name not in admit({'model': dict(type=SSD), name: 'os.system'}, 'x.pth')


# what no name decides -----------------------------------------------------------------------------------
VALUES = {
    'a scope': dict(_scope_='evil'), 'a scope that is a dict': dict(_scope_={}),
    'a base': dict(_base_='evil.py'),
    'a deletion': dict(_delete_=True), 'an import': dict(__import__=1),
    'a class': dict(a=torch.nn.Conv2d), 'a function': dict(a=print), 'a tensor': dict(a=torch.ones(1)),
    'a set': dict(a={1}), 'bytes': dict(a=b'x'), 'a complex number': dict(a=1j), 'an ellipsis': dict(a=...),
    'a large number': dict(a=10 ** 30), 'a long text': dict(a='x' * 200_000),
    'too many values': dict(a=[0] * 300_000), 'a key with quotes': {"a': 1, 'b": 1},
    'a key with double quotes': {'a": 1': 1}, 'a key with a backslash': {'a\\': 1},
    'a key with a line': {'a\nb': 1}, 'a key that is a keyword': {'class': 1},
    'a key that is a tuple': {(1, 2): 1}, 'a key that is None': {None: 1},
    'a template': dict(a='{{$ENV:HOME:x}}'), 'a template of a base': dict(a='x{{_base_.a}}'),
    'a config': dict(config='evil.py'), 'a config above': dict(config='configs/../evil.py'),
    'a config in YAML': dict(a=['evil.yaml']), 'a pickle': dict(a='evil.pkl'),
    'a pickle in capitals': dict(a='E.PKL'), 'a teacher': dict(teacher_config='evil.py'),
    'a library': dict(a='evil.so'), 'an array': dict(a='evil.npy'),
    'a way of warping': dict(warp_mode="__import__('evil')"),
    'a suppression in words': dict(nms="__import__('evil')"),
    'a place to write': dict(out_dir='/x'), 'a prefix to write': dict(outfile_prefix='/x'),
    'a store elsewhere': dict(backend='petrel'),
}


@pytest.mark.parametrize('name', VALUES)
@pytest.mark.parametrize('part', ['model', 'test_dataloader', 'test_pipeline'])
def test_values_are_plain_and_name_nothing_that_runs(part, name):
    inner = VALUES[name]
    for depth in (0, 3):
        value = inner
        for _ in range(depth):
            value = dict(a=[value])
        value = dict(value, type=SSD) if part == 'model' else [value] if part == 'test_pipeline' else value
        assert not passes({part: value})


def test_depth_is_bounded():
    for wrap in (lambda value: [value], lambda value: dict(a=value), lambda value: (value,)):
        value = 0
        for _ in range(100):
            value = wrap(value)
        assert not passes({'model': dict(type=SSD, a=value)})


@pytest.mark.parametrize('scope', ['evil', 'mmcv', 'os', '', 1, ['mmdet']])
def test_no_scope_is_imported(scope):
    assert not passes(dict(default_scope=scope))


@pytest.mark.parametrize('key', ['ann_file', 'proposal_file', 'meta_file', 'extra_ann_file', 'data_root'])
@pytest.mark.parametrize('value', ['a.pkl', 'a.pickle', 'a.yaml', 'a.yml', 'a.py', 'http://a/b', 's3://b'])
def test_a_data_set_reads_no_pickle_and_no_address(key, value):
    assert not passes(dict(test_dataloader=dict(dataset=dict(type='CocoDataset', **{key: value}))))


def test_files_of_weights_are_not_named_any_more():
    file, drawn = dict(type='Pretrained', checkpoint='/x.pth'), dict(type='Xavier', layer='Conv2d')
    model = dict(type=SSD, neck=dict(init_cfg=[file, drawn]),
                 backbone=dict(init_cfg=file, pretrained='a://b'))
    assert admit(dict(model=model), 'x').model.to_dict() == dict(
        type=SSD, backbone=dict(init_cfg=None, pretrained=None),
        neck=dict(init_cfg=[drawn]))


def test_a_teacher_is_built_from_the_projects_own_configs_alone(tmp_path, monkeypatch):
    teacher = dict(config='configs/shapes/teacher.py', checkpoint='x.pth')
    mine = dict(model=dict(type='Distiller', teacher=teacher))
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs' / 'shapes').mkdir(parents=True)
    (tmp_path / 'configs' / 'shapes' / 'teacher.py').write_text('model = None')
    teacher = admit(mine, 'x').model.teacher
    assert teacher.config == str(ROOT / 'configs/shapes/teacher.py') and teacher.checkpoint is None


def test_whoever_trusts_a_file_gets_it_whole(request):
    request.addfinalizer(lambda: trust_checkpoints(False))
    trust_checkpoints(True)
    cfg = admit(dict(model=dict(type='my.Detector')), 'x')
    assert cfg.model.type == 'my.Detector' and not isinstance(cfg, Admitted)


# registered things --------------------------------------------------------------------------------------
POWERS = re.compile(r'(?<![.\w])(eval|exec|open)\(|fromfile\(|from_pretrained\(|torch\.load\(|np\.load\('
                    r'|import_module\(|subprocess|getattr\((ops|albumentations)|load_checkpoint\('
                    r'|(?<![.\w])dump\(')
BOUND = {   # what of it is bound otherwise
    'load_checkpoint(': 'the files of weights are taken out of the config',
    'getattr(ops': '`roi_layer.type` is one of a few',
    'dump(': 'where to is told by `outfile_prefix`, which must be empty: then it is a temporary folder',
}


@pytest.mark.parametrize('kind', ['MODELS', 'TASK_UTILS', 'DATASETS', 'TRANSFORMS', 'METRICS', 'EVALUATOR'])
def test_what_can_run_or_write_is_known_to_the_gate(kind):
    for name in names(kind) - REFUSED:
        thing = next(each for module in (mmdet.registry, mmengine.registry)
                     if (each := getattr(module, kind, mmengine.registry.MODELS).module_dict.get(name)))
        for one in inspect.getmro(thing) if inspect.isclass(thing) else (thing,):
            if not one.__module__.startswith(('mmdet.', 'mmcv.', 'mmengine.')):
                continue
            source = re.sub(r'""".*?"""|#[^\n]*', '', inspect.getsource(one), flags=re.S)
            found = {match[0] for match in POWERS.finditer(source)}
            assert found <= BOUND.keys(), (name, one.__name__, found)


def test_text_is_not_evaluated_by_mmcv_or_mmdet():
    from mmcv.ops import batched_nms
    from mmdet.models.task_modules.tracking.camera_motion_compensation import CameraMotionCompensation

    import hgd_det.registered  # noqa: F401

    boxes, scores = torch.tensor([[0., 0, 9, 9], [0, 0, 9, 9]]), torch.tensor([.9, .8])
    labels = torch.tensor([0, 0])
    assert len(batched_nms(boxes, scores, labels, dict(type='nms', iou_threshold=.5))[1]) == 1
    for text in ("__import__('os').getcwd", 'print', 'eval', 'Tensor', 'nms or 1', 'torch.load', ''):
        with pytest.raises(UserError, match='expressions are not evaluated'):
            batched_nms(boxes, scores, labels, dict(type=text, iou_threshold=.5))
    assert CameraMotionCompensation().warp_mode == 1
    with pytest.raises(UserError, match='expressions are not evaluated'):
        CameraMotionCompensation(warp_mode="__import__('os')")


def test_registries_import_nothing_while_a_config_out_of_a_file_is_built(tmp_path, monkeypatch):
    (tmp_path / 'MaxIoUAssigner.py').write_text('')
    monkeypatch.syspath_prepend(str(tmp_path))
    cfg = admit(dict(model=tiny_ssd()), 'x')
    with sealed(cfg), pytest.raises((UserError, RuntimeError), match='MaxIoUAssigner'):
        mmdet.registry.MODELS.get('MaxIoUAssigner')    # elsewhere it is; here a module of that name would do
    assert 'MaxIoUAssigner' not in sys.modules
    with sealed(Config(dict(a=1))):
        assert mmdet.registry.MODELS.get('torch.nn.Conv2d') is torch.nn.Conv2d
    assert mmdet.registry.MODELS.get('torch.nn.Conv2d') is torch.nn.Conv2d


def test_every_config_of_the_project_passes_as_a_checkpoint_holds_it():
    files = sorted((ROOT / 'configs').rglob('*.py'))
    passed = 0
    for path in files:
        cfg = Config.fromfile(path)
        if not isinstance(cfg.get('model'), dict) or '_base_' in path.parts or cfg.model.get('type') is None:
            continue
        values = cfg.to_dict()
        found = admit(values, path)
        lost = {part for part in gate.PARTS if part in values} - found.keys()
        assert not lost and found.model.type == values['model']['type'], (path, lost)
        passed += 1
    assert passed > 30
