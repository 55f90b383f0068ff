"""Configs in files that were made to do harm, through every entrance: a module that leaves a trace when it is
imported, and functions and files that do when they are called or read, are named wherever a config can.
"""
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch

from hgd_det import literal
from hgd_det.checkpoint import load
from hgd_det.cli.main import main
from hgd_det.testing import digests

pytestmark = pytest.mark.thorough

CANARY = "open({hit!r}, 'w').close()\ndef call(*a, **k): open({hit!r}, 'w').close()\nclass Set: pass\n"
CALL = "__import__('canary').call"


class Mkdir:
    def __init__(self, hit):
        self.hit = hit

    def __reduce__(self):
        return open, (self.hit, 'w')


def put(*path, value):
    """A change of a config: `value` at this path, made where it is not there."""
    def change(cfg):
        node = cfg
        for key in path[:-1]:
            node = node[key] if isinstance(node, list) else node.setdefault(key, {})
        node[path[-1]] = value
    return change


def model(**model):
    return put('model', value=model)


def set_of(**dataset):
    def change(cfg):
        cfg['test_dataloader']['dataset'].update(dataset)
    return change


DICT = ('model', 'bbox_head')
# what a detector is built, fed and judged by; every one of these is refused
ATTACKS = {
    'os.system': model(type='os.system', command='touch hit'),
    'a function of a module': model(type='canary.call'),
    'a class of a module': model(type='canary.Set'),
    'a module': model(type='canary'),
    'a scope before a name': model(type='canary.SSD'),
    'a backbone': put('model', 'backbone', 'type', value='canary.call'),
    'a head': put(*DICT, 'type', value='canary.call'),
    'a coder': put(*DICT, 'bbox_coder', 'type', value='canary.call'),
    'a norm': put('model', 'neck', 'norm_cfg', value=dict(type='canary.call')),
    'a preprocessor': put('model', 'data_preprocessor', 'type', value='canary.call'),
    'an augmentation of batches': put('model', 'data_preprocessor', 'batch_augments', value=[
        dict(type='canary.call')]),
    'an assigner': put('model', 'train_cfg', 'assigner', 'type', value='canary.call'),
    'initial weights': put('model', 'init_cfg', value=dict(type='canary.call')),
    'a suppression that is evaluated': put('model', 'test_cfg', 'nms', 'type', value=CALL),
    'a suppression by words': put('model', 'test_cfg', 'nms', value=CALL),
    'a suppression that is a name': put('model', 'test_cfg', 'nms', 'type', value='exec'),
    'a scope of a part': put('model', 'backbone', '_scope_', value='canary'),
    'a scope of all': put('default_scope', value='canary'),
    'a warping': put('model', 'train_cfg', 'cmc', value=dict(
        type='CameraMotionCompensation', warp_mode=f'{CALL}()')),
    "mmdet's distillation": model(type='KnowledgeDistillationSingleStageDetector',
                                  teacher_config='canary.py'),
    'a member of an ensemble': model(type='Ensemble', members=[dict(config='canary.py', checkpoint='x.pth')]),
    'a member in YAML': model(type='Ensemble', members=[dict(config='canary.yaml', checkpoint='x.pth')]),
    'a distiller within': put('model', 'backbone', value=dict(
        type='Distiller', student=dict(type='SingleStageDetector'), terms={},
        teacher=dict(model='canary.py'))),
    'a data set': set_of(type='canary.Set'),
    'a data set that is a module': set_of(type='canary'),
    'a data set within': put('test_dataloader', 'dataset', value=dict(
        type='ConcatDataset', datasets=[dict(type='canary.Set')])),
    'a collation': put('test_dataloader', 'collate_fn', value=dict(type='canary.call')),
    'a sampler': put('test_dataloader', 'sampler', 'type', value='canary.call'),
    'a step of the pipeline': put('test_dataloader', 'dataset', 'pipeline', 1, value=dict(type='canary.x')),
    'a step within': put('test_dataloader', 'dataset', 'pipeline', 1, value=dict(
        type='RandomApply', transforms=[dict(type='canary.call')])),
    'a step of albumentations': put('test_dataloader', 'dataset', 'pipeline', 1, value=dict(
        type='Albu', transforms=[dict(type='from_dict')])),
    'annotations in a pickle': set_of(type='BaseDetDataset', ann_file='canary.pkl'),
    'annotations in YAML': set_of(type='BaseDetDataset', ann_file='canary.yaml'),
    'proposals in a pickle': set_of(proposal_file='canary.pkl'),
    'a pickle of another name': set_of(type='OpenImagesDataset', meta_file='canary.txt'),
    'an address': set_of(data_root='http://127.0.0.1:9/'),
    'a key that is a program': put('model', 'test_cfg', "a': __import__('canary'), 'b", value=1),
    'a template': put('model', 'test_cfg', 'a', value="{{$ENV:NONE:\\\\'+__import__('canary')+'}}"),
}
# what no verb builds from a file: left outside, and the command works
HARMLESS = {
    'imports': put('custom_imports', value=dict(imports=['canary'])),
    'a base': put('_base_', value='canary.py'),
    'a hook': put('custom_hooks', value=[dict(type='canary.call')]),
    'a default hook': put('default_hooks', 'logger', value=dict(type='canary.call')),
    'a visualizer': put('visualizer', value=dict(type='canary.call')),
    'a backend of it': put('vis_backends', value=[dict(type='canary.call')]),
    'a model wrapper': put('model_wrapper_cfg', value=dict(type='canary.call')),
    'a runner': put('runner_type', value='canary.call'),
    'an optimizer': put('optim_wrapper', 'optimizer', 'type', value='canary.call'),
    'a constructor of it': put('optim_wrapper', 'constructor', value=dict(type='canary.call')),
    'a schedule': put('param_scheduler', value=[dict(type='canary.call')]),
    'a log processor': put('log_processor', 'type', value='canary.call'),
    'a loop': put('test_cfg', 'type', value='canary.call'),
    'data to train on': put('train_dataloader', 'dataset', 'type', value='canary.call'),
    'an evaluator': put('test_evaluator', value=dict(type='canary.call')),
    'an evaluator that writes': put('test_evaluator', value=dict(type='DumpDetResults', out_file_path='hit')),
    'an evaluator of COCO that writes': put('test_evaluator', 'outfile_prefix', value='hit'),
    'pretrained weights': put('model', 'backbone', 'init_cfg', value=dict(
        type='Pretrained', checkpoint='canary.pkl')),
    'a name that mmengine keeps': put('text', value='x'),
}
ENTRANCES = {
    'predict': 'predict {file} {image} --out out',
    'export': 'export auto {file} out',
    'export to ONNX, verified': 'export auto {file} out/x.onnx --verify test --limit 1',
    'bench': 'bench {file} --repeat 1 --warmup 0 --batch 1 --threads 1',
    'features': 'features auto {file} {image} --out out',
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder, on the path as a script's own is, full of what must not be touched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    hit = str(tmp_path / 'hit')
    Path('canary.py').write_text(CANARY.format(hit=hit))
    for name in ('canary.pkl', 'canary.txt', 'x.pth'):
        Path(name).write_bytes(pickle.dumps(Mkdir(hit)))
    Path('canary.yaml').write_text(f"!!python/object/apply:builtins.open ['{hit}', 'w']")
    before = digests(tmp_path)
    yield tmp_path
    assert not Path(hit).exists(), 'something that the file names was run'
    assert 'canary' not in sys.modules
    after = digests(tmp_path)
    assert {path: after.get(path) for path in before} == before


def forged(sound, change, path: str, **meta) -> Path:
    """The sound student's checkpoint with another config inside."""
    content = dict(load(sound.student))
    cfg = literal.read(content['meta']['cfg'])
    change(cfg)
    content['meta'] = dict(content['meta'], cfg=written(cfg), **meta)
    write(content, path)
    return Path(path)


def written(cfg: dict) -> str:
    return ''.join(f'{key} = {value!r}\n' for key, value in cfg.items())


def write(content, path: str) -> None:
    if path.endswith('.safetensors'):
        from safetensors.torch import save_file
        note = json.dumps(dict(cfg=content['meta']['cfg']))
        save_file(dict(content['state_dict']), path, {'hgd_det': note})
    else:
        torch.save(content, path)


def run(command: str, capfd) -> tuple[int, str]:
    capfd.readouterr()
    try:
        status = main(command.split())
    except SystemExit as stop:
        status = stop.code
    said = capfd.readouterr()
    assert 'Traceback' not in said.out + said.err
    return status, said.out + said.err


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('entrance', ENTRANCES)
@pytest.mark.parametrize('attack', ATTACKS)
def test_a_config_in_a_file_runs_nothing(attack, entrance, suffix, here, sound, capfd):
    file = forged(sound, ATTACKS[attack], f'bad{suffix}')
    status, said = run(ENTRANCES[entrance].format(file=file, image=sound.image), capfd)
    assert status == 2 and 'was refused' in said and 'bad' in said and '--trust-checkpoint' in said, said
    assert not Path('out').exists()


@pytest.mark.parametrize('attack', ['a backbone', 'a suppression that is evaluated', 'a member in YAML'])
def test_nor_as_the_config_of_a_peer(attack, here, sound, capfd):
    content = dict(load(sound.student))
    cfg = literal.read(content['meta']['cfg'])
    ATTACKS[attack](cfg)
    cfg['model'] = dict(type='Distiller', student=literal.read(content['meta']['cfg'])['model'],
                        terms=dict(dml=dict(type='DML', peer=cfg['model'])))
    content['meta'] = dict(content['meta'], cfg=written(cfg))
    content['distill'] = {f'distill.dml.peer.{key}': value for key, value in content['state_dict'].items()}
    torch.save(content, 'bad.pth')
    status, said = run('export auto bad.pth out --peer dml', capfd)
    assert status == 2 and 'was refused' in said, said


@pytest.mark.parametrize('attack', HARMLESS)
def test_what_no_verb_builds_is_left_outside(attack, here, sound, capfd):
    file = forged(sound, HARMLESS[attack], 'bad.pth')
    status, said = run(f'export auto {file} out', capfd)
    assert status == 0, said
    made = Path('out/model.py').read_text()
    assert 'canary' not in made and "'hit'" not in made
    status, said = run(f'predict out/model.pth {sound.image} --out found', capfd)
    assert status == 0, said
    from hgd_det.training.runner import load_config
    load_config('out/model.py')    # is a program, and does nothing but assign


@pytest.mark.parametrize('attack', [name for name in HARMLESS if name.startswith('an evaluator')])
def test_nothing_is_judged_by_an_evaluator_that_runs_or_writes(attack, here, sound, capfd):
    file = forged(sound, HARMLESS[attack], 'bad.pth')
    status, said = run(f'export auto {file} out --verify test --limit 1', capfd)
    assert status == 2 and 'no test_evaluator' in said, said


# a folder from elsewhere --------------------------------------------------------------------------------
@pytest.fixture
def folder(here, sound):
    """What a run left behind, with a config and a checkpoint of somebody's making: `folder(change)`."""
    def make(change, distilled: bool = False) -> Path:
        content = dict(load(sound.student))
        cfg = literal.read(content['meta']['cfg'])
        if distilled:
            cfg['model'] = dict(type='Distiller', student=cfg['model'], input_size=96,
                                teacher=dict(model=dict(model=cfg['model']), checkpoint='canary.pkl'),
                                terms=dict(hgd=dict(type='HGD')))
        change(cfg)
        text = written(cfg)
        Path('run').mkdir()
        Path('run/config.py').write_text(text)
        content['meta'] = dict(content['meta'], cfg=text)
        torch.save(content, 'run/iter_4.pth')
        Path('run/last_checkpoint').write_text('run/iter_4.pth')
        return Path('run')
    return make


@pytest.mark.parametrize('attack', ATTACKS)
def test_a_report_on_a_folder_runs_nothing(attack, folder, capfd):
    folder(ATTACKS[attack])
    status, said = run('report run --out page.html --images 1', capfd)
    assert status == 0, said
    assert 'could not be opened' in Path('page.html').read_text()


TEACHERS = {
    'a config that is a program': put('model', 'teacher', value=dict(config='canary.py', checkpoint='x.pth')),
    'a config in the folder itself': put('model', 'teacher', value=dict(config='run/config.py')),
    'a config by its whole path': lambda cfg: cfg['model'].update(
        teacher=dict(model=str(Path('canary.py').absolute()))),
    'a detector': put('model', 'teacher', 'config', 'model', value=dict(type='canary.call')),
    'a term': put('model', 'terms', 'hgd', 'type', value='canary.call'),
    'a term that is a detector': put('model', 'terms', 'hgd', 'type', value='Ensemble'),
    'a peer by its config': put('model', 'terms', value=dict(dml=dict(type='DML', peer='canary.py'))),
    'a peer': put('model', 'terms', value=dict(dml=dict(type='DML', peer=dict(type='canary.call')))),
    'a suppression': put('model', 'student', 'test_cfg', 'nms', 'type', value=CALL),
    'a data set': ATTACKS['a data set'],
    'a scope': ATTACKS['a scope of all'],
}


@pytest.mark.parametrize('attack', TEACHERS)
def test_who_imitates_whom_is_found_without_running_a_folders_config(attack, folder, capfd):
    folder(TEACHERS[attack], distilled=True)
    status, said = run('report run --out page.html --images 1', capfd)
    assert status == 0, said
    assert 'who imitates whom in run is not known' in Path('page.html').read_text().lower()


def test_weights_that_a_folder_names_are_not_read_for_a_report(folder, capfd):
    """Neither a teacher's nor a peer's nor initial ones."""
    file = dict(type='Pretrained', checkpoint='canary.pkl')

    def change(cfg):
        cfg['model']['student']['backbone']['init_cfg'] = file
        cfg['model']['terms']['dml'] = dict(type='DML', peer=dict(model=cfg['model']['student']),
                                            checkpoint='canary.pkl')
    folder(change, distilled=True)
    status, said = run('report run --out page.html --images 1', capfd)
    page = Path('page.html').read_text()
    assert status == 0 and 'could not be opened' not in page and 'is not known' not in page, said


# entrances that take the config from the user: what is in the file is not even looked at ----------------
WITH_CONFIG = {
    'test': 'test {config} {file} --work-dir work',
    'resume': 'train {config} --resume {file} --work-dir work --no-validate',
    'train from': 'train {config} --work-dir work --no-validate --cfg-options load_from={file}',
    'a teacher': 'doctor {distill} --images 1 --cfg-options model.teacher.checkpoint={file} '
                 'model.teacher.model={config}',
    'a peer': 'doctor {distill} --images 1 --cfg-options model.terms.dml.type=DML '
              'model.terms.dml.peer={config} model.terms.dml.checkpoint={file}',
    'a member of an ensemble': 'test ensemble.py --work-dir work',
    'predict': 'predict {file} {image} --out out --config {config}',
    'export': 'export {config} {file} out',
    'bench': 'bench {file} --config {config} --repeat 1 --warmup 0 --batch 1 --threads 1',
    'features': 'features {config} {file} {image} --out out',
    'a report without models': 'report run --no-models --out page.html',
}


@pytest.mark.parametrize('entrance', WITH_CONFIG)
def test_nothing_in_the_file_is_run_where_the_user_gives_the_config(entrance, folder, sound, capfd):
    change = ATTACKS['a function of a module']
    folder(change)
    file = forged(sound, change, 'bad.pth', config='import canary\ncanary.call()', seed=None)
    content = dict(load(file))
    hub = content['message_hub']
    told = dict(hub['runtime_info'], cfg=content['meta']['cfg'])
    torch.save(dict(content, message_hub=dict(hub, runtime_info=told)), file)
    mine = str(sound.config)
    Path('ensemble.py').write_text(f'_base_ = {mine!r}\nmodel = dict(_delete_=True, type="Ensemble", '
                                   f'members=[dict(config={mine!r}, checkpoint="bad.pth")])\n')
    status, said = run(WITH_CONFIG[entrance].format(file=file, **vars(sound)), capfd)
    assert status in ((0, 1) if 'doctor' in WITH_CONFIG[entrance] else (0,)), said
    assert 'set-up' not in said, said


def test_the_attacks_do_harm_where_a_file_is_trusted(tmp_path, monkeypatch, sound, capfd):
    """That is, they are real: what follows from `--trust-checkpoint`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path('canary.py').write_text(CANARY.format(hit='hit'))
    for attack in ('a function of a module', 'a backbone', 'a module', 'a scope of a part'):
        file = forged(sound, ATTACKS[attack], 'bad.pth')
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr('hgd_det.training.mistakes.MORE', '')
            try:
                main(f'predict {file} {sound.image} --out out --trust-checkpoint'.split())
            except Exception:
                pass
        assert Path('hit').exists(), attack
        Path('hit').unlink()
        sys.modules.pop('canary', None)
    from hgd_det.checkpoint import trust_checkpoints
    trust_checkpoints(False)
