"""Every method trains on drawn shapes and leaves the plain student behind."""
import json
import os
from pathlib import Path

import pytest
import torch

import hgd_det.registered  # noqa: F401
from hgd_det.checkpoint import load
from hgd_det.cli.main import main
from hgd_det.deploy.student import build
from hgd_det.experiments.tables import table
from hgd_det.paths import find_method, read_config

pytestmark = pytest.mark.thorough

PAIRS = {line.method: line for line in table('methods', 'shapes').lines if line.method}
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
            train(f'shapes/{teacher}', steps=2)
        yield folder
    finally:
        os.chdir(here)


def train(config, *method, steps):
    assert main(['train', config, *method, '--no-validate', '--cfg-options',
                 f'train_cfg.max_iters={steps}', 'train_dataloader.batch_size=2',
                 'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
                 'default_hooks.logger.interval=1']) == 0
    return Path('work_dirs', config, *method[1:])


@pytest.mark.parametrize('name', PAIRS)
def test_twenty_steps_and_a_plain_student(name, folder):
    pair, method = PAIRS[name].config, read_config(find_method(name))
    run = train(pair, '--method', name, steps=STEPS)
    if last := method.get('generations'):
        run = run / f'gen{last}'
    logs = [json.loads(line) for line in next(run.glob('*/vis_data/scalars.json')).open()]
    assert len(logs) == STEPS
    terms = method.terms
    for term in terms:
        # a term that teaches by other means than a loss, as LAD does, tells what it did
        kind = f'loss_{term}' if any(f'{term}_raw' in log for log in logs) else f'{term}_'
        values = [sum(v for k, v in log.items() if k.startswith(kind)) for log in logs]
        assert torch.isfinite(torch.tensor(values)).all() and max(values) > 0, term

    assert main(['export', pair, str(run / f'iter_{STEPS}.pth'), f'out/{name}', '--method', name]) == 0
    content = torch.load(f'out/{name}/model.pth', weights_only=True)
    student = build(read_config(PAIRS[name].alone))
    assert list(content['state_dict']) == list(student.state_dict())
    student.load_state_dict(content['state_dict'], strict=True)
    trained = load(run / f'iter_{STEPS}.pth')['state_dict']
    assert all(torch.equal(value, trained[key]) for key, value in content['state_dict'].items())
    assert sorted(json.loads(Path(f'out/{name}/model.json').read_text())['taught']['terms']) == sorted(terms)
