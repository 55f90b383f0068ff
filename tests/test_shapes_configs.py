"""Every method of configs/shapes trains on drawn shapes and leaves the plain student behind."""
import json
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

import hgd_det.registered  # noqa: F401
from hgd_det.checkpoint import load
from hgd_det.cli.main import main
from hgd_det.deploy.student import build

ROOT = Path(__file__).parents[1]
SHAPES = ROOT / 'configs/shapes'
DISTILLING = sorted(path.stem for path in SHAPES.glob('*.py')
                    if Config.fromfile(path).model.type == 'Distiller')
STEPS = 20


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a small drawing of the data and both teachers after two steps."""
    folder = tmp_path_factory.mktemp('methods')
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert main(['data', 'shapes', 'data/shapes', '--train', '24', '--test', '8']) == 0
        for teacher in ('teacher', 'ld_teacher'):
            train(teacher, 2)
        yield folder
    finally:
        os.chdir(here)


def train(name, steps):
    assert main(['train', f'configs/shapes/{name}.py', '--no-validate', '--cfg-options',
                 f'train_cfg.max_iters={steps}', 'train_dataloader.batch_size=2',
                 'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
                 'default_hooks.logger.interval=1']) == 0
    run, last = Path('work_dirs/shapes', name), Config.fromfile(SHAPES / f'{name}.py').get('generations')
    return run / f'gen{last}' if last else run


def plain_student(name):
    """The config of the student that the method's result must be indistinguishable from."""
    return Config.fromfile(SHAPES / f'{"ld_student" if name in ("ld", "combined") else "student"}.py')


@pytest.mark.parametrize('name', DISTILLING)
def test_twenty_steps_and_a_plain_student(name, folder):
    run = train(name, STEPS)
    logs = [json.loads(line) for line in next(run.glob('*/vis_data/scalars.json')).open()]
    assert len(logs) == STEPS
    terms = Config.fromfile(SHAPES / f'{name}.py').model.terms
    for term in terms:
        # a term that teaches by other means than a loss, as LAD does, tells what it did
        kind = f'loss_{term}' if any(f'{term}_raw' in log for log in logs) else f'{term}_'
        values = [sum(v for k, v in log.items() if k.startswith(kind)) for log in logs]
        assert torch.isfinite(torch.tensor(values)).all() and max(values) > 0, term

    assert main(['export', f'configs/shapes/{name}.py', str(run / f'iter_{STEPS}.pth'), f'out/{name}']) == 0
    content = torch.load(f'out/{name}/model.pth', weights_only=True)
    student = build(plain_student(name))
    assert list(content['state_dict']) == list(student.state_dict())
    student.load_state_dict(content['state_dict'], strict=True)
    trained = load(run / f'iter_{STEPS}.pth')['state_dict']
    assert all(torch.equal(value, trained[key]) for key, value in content['state_dict'].items())
    assert sorted(json.loads(Path(f'out/{name}/model.json').read_text())['taught']['terms']) == sorted(terms)


@pytest.mark.parametrize('name', DISTILLING)
def test_the_large_twin_has_the_same_terms(name):
    """What is tried on a laptop is what the config for VOC does; only weights and lengths differ."""
    twins = [path for path in (ROOT / 'configs').rglob('*half_voc.py')
             if path.parent.name in (name, 'rivals', 'lectures')
             and name in (path.parent.name, path.stem[:-9])]
    assert len(twins) == 1, twins
    mine, theirs = (Config.fromfile(path).model for path in (SHAPES / f'{name}.py', twins[0]))
    assert mine.terms.keys() == theirs.terms.keys()
    free = {'weight', 'warmup', 'ratio'}
    for key, term in mine.terms.items():
        assert {k: v for k, v in term.items() if k not in free} == {
            k: v for k, v in theirs.terms[key].items() if k not in free}, key
    assert mine.student.bbox_head.type == theirs.student.bbox_head.type
