import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

from hgd_det.checkpoint import load

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).resolve().parents[2]


def weights(path):
    return load(path)['state_dict']


def test_a_run_leaves_checkpoints_a_log_and_a_pointer_to_the_last(trained):
    assert (trained / 'last_checkpoint').read_text() == str(trained / 'iter_4.pth')
    assert {path.name for path in trained.glob('*.pth')} == {'iter_2.pth', 'iter_4.pth'}
    assert not list(trained.glob('.*.tmp'))
    scalars = [json.loads(line) for line in next(trained.glob('*/vis_data/scalars.json')).open()]
    assert scalars[-1]['voc/mAP'] >= 0


def test_a_cpu_trains_in_channels_last_and_saves_in_the_plain_format(trained, config):
    from hgd_det.training.runner import build_runner, load_config
    if not torch.cuda.is_available():
        model = build_runner(load_config(config)).model
        kernels = [p for p in model.parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1]
        assert kernels and all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    assert all(value.is_contiguous() for value in weights(trained / 'iter_4.pth').values())


def test_the_seed_is_zero_unless_told_and_decides_the_weights(trained, hgd, tmp_path):
    assert hgd('train', '--work-dir', tmp_path / 'same', '--no-validate') == 0
    assert hgd('train', '--work-dir', tmp_path / 'other', '--no-validate', '--seed', 1) == 0
    first, same, other = (weights(folder / 'iter_4.pth')
                          for folder in (trained, tmp_path / 'same', tmp_path / 'other'))
    assert all(torch.equal(value, same[key]) for key, value in first.items())
    assert not all(torch.equal(value, other[key]) for key, value in first.items())


def test_resume_goes_on_from_the_newest_intact_checkpoint_and_names_the_damaged(
        trained, hgd, tmp_path, capsys):
    for name in ('iter_2.pth', 'iter_4.pth'):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    (tmp_path / 'iter_4.pth').write_bytes((tmp_path / 'iter_4.pth').read_bytes()[:-3000])
    assert hgd('train', '--work-dir', tmp_path, '--resume') == 0
    said = capsys.readouterr().out
    assert 'iter_4.pth' in said and 'truncated or damaged' in said
    assert f'resuming from {tmp_path / "iter_2.pth"}' in said
    assert load(tmp_path / 'iter_4.pth')['meta']['iter'] == 4


def test_resume_without_any_checkpoint_starts_a_new_run(hgd, tmp_path, capsys):
    assert hgd('train', '--work-dir', tmp_path, '--resume', '--no-validate',
               options=['train_cfg.max_iters=1']) == 0
    assert 'nothing to resume from' in capsys.readouterr().out
    assert (tmp_path / 'iter_1.pth').exists()


def test_resume_refuses_when_every_checkpoint_is_damaged(hgd, tmp_path, capsys):
    (tmp_path / 'iter_2.pth').write_bytes(b'')
    assert hgd('train', '--work-dir', tmp_path, '--resume') == 2
    captured = capsys.readouterr()
    assert 'empty (0 bytes)' in captured.out and 'none of the checkpoints' in captured.err


def test_resume_refuses_a_checkpoint_of_another_model(trained, hgd, tmp_path, capsys):
    assert hgd('train', '--work-dir', tmp_path, '--resume', trained / 'iter_2.pth',
               options=['model.backbone.with_bn=False']) == 2
    assert 'of another model than the config' in capsys.readouterr().err


def test_a_pretrained_backbone_that_is_a_program_is_refused(hgd, tmp_path, capsys):
    class Bomb:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path}/exploded',)
    torch.save({'state_dict': {}, 'bomb': Bomb()}, tmp_path / 'bad.pth')
    assert hgd('train', '--work-dir', tmp_path, options=[f'load_from={tmp_path}/bad.pth']) == 2
    assert 'posix.system' in capsys.readouterr().err
    assert not (tmp_path / 'exploded').exists()


@pytest.mark.parametrize('arguments, message', [
    (['--amp'], '--amp needs a GPU'),
    (['--auto-scale-lr'], 'auto_scale_lr=dict(base_batch_size=N)'),
    (['--cfg-options', 'train_dataloader=None'], 'it has no train_dataloader'),
    (['--cfg-options', 'train_dataloader.dataset.ann_file=nowhere.txt'], 'nowhere.txt does not '
                                                                         'exist'),
    (['--cfg-options', 'val_evaluator.type=VOCMap'], 'near names: VOCmAP'),
    (['--cfg-options', 'model.bbox_head.num_clases=3'], "unexpected keyword argument 'num_clases'"),
    (['--cfg-options', 'nonsense'], 'not of the form key=value'),
    (['--cfg-options', 'model.backbone.width.x=1'], 'does not fit the config'),
])
def test_a_mistake_is_one_message_and_status_two(config, tmp_path, capsys, arguments, message):
    from hgd_det.cli.main import main
    assert main(['train', str(config), '--work-dir', str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and 'Traceback' not in error


def test_bf16_trains_anywhere_and_its_weights_stay_in_single_precision(hgd, tmp_path):
    assert hgd('train', '--amp', 'bf16', '--work-dir', tmp_path, options=['train_cfg.max_iters=2']) == 0
    saved = torch.load(tmp_path / 'iter_2.pth', weights_only=False)
    assert all(value.dtype == torch.float32 for value in saved['state_dict'].values()
               if value.is_floating_point())
    log = next(tmp_path.glob('*/vis_data/config.py')).read_text()
    assert 'BFloat16OptimWrapper' in log


def test_options_that_cannot_have_an_effect_are_named(config, capsys):
    from hgd_det.training.runner import load_config
    load_config(config, ['model.bbox_head.num_clases=3', 'data_root=elsewhere', 'train_cgf.x=1',
                         'load_from=x', 'train_dataloader.dataset.indices=4'])
    typo, variable, section = capsys.readouterr().err.splitlines()
    assert 'did you mean model.bbox_head.num_classes?' in typo
    assert 'did you mean train_cfg.x?' in section
    assert 'train_dataloader.dataset.data_root' in variable and 'changes nothing' in variable


def test_a_missing_config_is_named_with_its_neighbours(capsys):
    from hgd_det.cli.main import main
    assert main(['train', 'configs/ssd/ssd300_halff_voc.py']) == 2
    assert 'configs/ssd/ssd300_half_voc.py' in capsys.readouterr().err


def test_the_door_works_from_any_folder(tmp_path):
    done = subprocess.run([sys.executable, ROOT / 'tools/train.py', '--help'], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0 and '--auto-scale-lr' in done.stdout


@pytest.mark.slow
def test_a_termination_signal_saves_and_says_so_in_the_status_and_resume_goes_on(config, hgd, tmp_path):
    process = subprocess.Popen(
        [sys.executable, ROOT / 'tools/train.py', config, '--work-dir', tmp_path, '--no-validate',
         '--cfg-options', 'train_cfg.max_iters=100000', 'param_scheduler.0.total_steps=100000',
         'default_hooks.checkpoint.interval=100000', 'default_hooks.logger.interval=1',
         'default_hooks.logger.type=LoggerHook'],
        stdout=subprocess.PIPE, text=True, env=os.environ | {'OMP_NUM_THREADS': '1'})
    try:
        for line in process.stdout:
            if 'Iter(train)' in line:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, rest
    assert 'Stopped by SIGTERM' in rest
    saved, = tmp_path.glob('iter_*.pth')
    done = load(saved)['meta']['iter']
    assert hgd('train', '--work-dir', tmp_path, '--resume', '--no-validate',
               options=[f'train_cfg.max_iters={done + 1}',
                        'param_scheduler.0.total_steps=100000']) == 0
    assert (tmp_path / f'iter_{done + 1}.pth').exists()


def group_threads():
    return {name for path in Path('/proc/self/task').glob('*/comm')
            if (name := path.read_text()).startswith(('pt_gloo', 'pt_nccl'))}


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='threads are counted as Linux does')
@pytest.mark.parametrize('verb', ['train', 'test'])
def test_a_launched_run_leaves_neither_a_process_group_nor_its_threads(
        verb, trained, hgd, tmp_path, launched, monkeypatch):
    barrier, running = distributed.barrier, []

    def at_the_barrier():
        running.extend(group_threads())
        barrier()

    monkeypatch.setattr(distributed, 'barrier', at_the_barrier)
    rest = ['--no-validate'] if verb == 'train' else [trained / 'iter_4.pth']
    assert hgd(verb, *rest, '--launcher', 'pytorch', '--work-dir', tmp_path) == 0
    assert running and not group_threads() and not distributed.is_initialized()


def two_processes(config, work_dir, port):
    return subprocess.run(
        ['bash', ROOT / 'tools/dist_train.sh', config, '2', '--work-dir', work_dir],
        env=os.environ | {'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1', 'PORT': port,
                          'PYTHONPATH': f'{ROOT}:{Path(config).parent}'},
        capture_output=True, text=True, timeout=300)


def in_the_second(config, folder, action):
    """The config, with something that the second process does at the start of its third step."""
    (folder / 'second.py').write_text(f'''
import os, signal
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Second(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 1 and runner.iter == 2:
            {action}
''')
    changed = folder / 'changed.py'
    changed.write_text(f'''
_base_ = {str(config)!r}
custom_imports = dict(imports=['hgd_det.registered', 'second'])
custom_hooks = [dict(type='Second')]
''')
    return changed


@pytest.mark.slow
def test_two_processes_train_on_a_machine_without_gpus(config, tmp_path, free_port):
    done = two_processes(config, tmp_path, free_port)
    assert done.returncode == 0, done.stderr[-3000:]
    assert load(tmp_path / 'iter_4.pth')['meta']['iter'] == 4


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_iteration(
        config, tmp_path, free_port):
    changed = in_the_second(config, tmp_path, 'os.kill(os.getpid(), signal.SIGTERM)')
    done = two_processes(changed, tmp_path, free_port)
    assert done.returncode != 0 and f'exitcode  : {128 + signal.SIGTERM}' in done.stderr
    assert 'Stopped by SIGTERM at iteration 3' in done.stdout + done.stderr
    assert load(tmp_path / 'iter_3.pth')['meta']['iter'] == 3
    assert not (tmp_path / 'iter_4.pth').exists()


@pytest.mark.slow
def test_when_one_of_two_processes_fails_the_job_ends_and_says_why(config, tmp_path, free_port):
    changed = in_the_second(config, tmp_path, "raise ArithmeticError('the second fails')")
    done = two_processes(changed, tmp_path, free_port)
    assert done.returncode != 0
    assert 'ArithmeticError: the second fails' in done.stderr
    assert not (tmp_path / 'iter_4.pth').exists()
