"""Two processes over gloo: where one has less to do, or dies, the other does not wait for it for ever."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hgd_det.checkpoint import load

pytestmark = [pytest.mark.slow, pytest.mark.faults]
ROOT = Path(__file__).resolve().parents[2]
# Of ten images each process gets five, in batches of three and two. The first batch of the second process
# has no objects, and for the first two steps one of the terms waits.
UNEVEN = '''
_base_ = {lasting!r}
custom_imports = dict(imports=['hgd_det.registered', 'killed'])
custom_hooks = [dict(type='DistillHook'), dict(type='EMAHook', momentum=0.1),
                dict(type='Killed', once={once!r})]
train_dataloader = dict(batch_size=3, sampler=dict(_delete_=True, type='DefaultSampler', shuffle=False),
                        dataset=dict(data_root={data!r}, ann_file='VOC2007/ImageSets/Main/uneven.txt'))
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=4, val_interval=4)
default_hooks = dict(checkpoint=dict(by_epoch=True, interval=1))
'''
KILLED = '''
import os, signal
from pathlib import Path
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Killed(Hook):
    """The second process, once, in its sixth step."""
    def __init__(self, once):
        self.once = Path(once)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 1 and runner.iter == 5 and self.once.exists():
            self.once.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.fixture(scope='module')
def uneven(config, lasting, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('uneven')
    shutil.copytree(config.parent / 'data', folder / 'data')
    voc = folder / 'data/VOC2007'
    names = [f'{i:06d}' for i in range(10)]
    (voc / 'ImageSets/Main/uneven.txt').write_text('\n'.join(names))
    for name in names[1:7:2]:
        path = voc / f'Annotations/{name}.xml'
        path.write_text(re.sub('<object>.*</object>', '', path.read_text(), flags=re.DOTALL))
    (folder / 'killed.py').write_text(KILLED)
    (folder / 'uneven.py').write_text(UNEVEN.format(lasting=str(lasting), once=str(folder / 'once'),
                                                    data=f'{folder}/data/'))
    return folder / 'uneven.py'


def train(config: Path, work_dir: Path, port: str, *arguments: str, restarts: int = 0) -> tuple[int, str]:
    """Exit status and output of `tools/dist_train.sh CONFIG 2`; all its processes end with it."""
    process = subprocess.Popen(
        ['bash', ROOT / 'tools/dist_train.sh', config, '2', '--work-dir', work_dir, *arguments],
        env=os.environ | dict(PYTHON=sys.executable, PYTHONPATH=f'{ROOT}:{config.parent}', PORT=port,
                              OMP_NUM_THREADS='1', MAX_RESTARTS=str(restarts)),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends the others
        pytest.fail(f'hangs after 600 s:\n{process.communicate()[0][-3000:]}')
    return process.returncode, said


def weights(folder: Path) -> dict:
    return load(folder / 'epoch_4.pth')['state_dict']


def test_a_killed_process_ends_the_job_with_a_message_and_torchruns_restart_resumes_it(
        uneven, tmp_path, free_port):
    status, said = train(uneven, tmp_path / 'whole', free_port)
    assert status == 0, said[-3000:]  # neither the uneven batches nor the empty one made it hang
    once = uneven.with_name('once')

    once.touch()
    status, said = train(uneven, tmp_path / 'killed', free_port, '--resume')
    assert status != 0 and not once.exists()
    assert 'error: another process of the job is gone' in said and '(SIGKILL)' in said
    assert '[rank0]: Traceback' not in said
    assert not (tmp_path / 'killed/epoch_3.pth').exists()

    once.touch()
    status, said = train(uneven, tmp_path / 'restarted', free_port, '--resume', restarts=1)
    assert status == 0 and not once.exists(), said[-3000:]
    assert f'resuming from {tmp_path}/restarted/epoch_2.pth' in said
    whole, restarted = weights(tmp_path / 'whole'), weights(tmp_path / 'restarted')
    assert whole.keys() == restarted.keys()
    assert [key for key, value in whole.items() if not torch.equal(value, restarted[key])] == []


def test_processes_with_different_numbers_of_steps_are_refused(uneven, tmp_path, free_port):
    status, said = train(uneven, tmp_path, free_port, '--cfg-options',
                         'train_dataloader.sampler.round_up=False', 'train_dataloader.dataset.indices=7')
    assert status != 0 and 'different numbers of steps, from 4 to 8' in said
