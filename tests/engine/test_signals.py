"""A run is told to stop, or its data do not come: what was trained is saved, and the message says why."""
import contextlib
import os
import signal
import subprocess
import time

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.hooks import EMAHook
from torch.utils.data import DataLoader, Dataset, default_collate

from hgd_det.checkpoint import load
from hgd_det.engine import signals
from hgd_det.engine.loading import patient
from hgd_det.engine.replay import ReplayRunner
from hgd_det.errors import RunError

RARELY = dict(interval=1000, save_last=False)


class Data(Dataset):
    """Pairs of numbers; something is done before the sixth."""

    def __init__(self, act=lambda: None):
        self.act = act

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 5:
            self.act()
        return (torch.full((2,), index / 8),)


class Unsendable:
    def __reduce__(self):
        raise OSError(28, 'No space left on device')


def together(samples):
    return default_collate(samples) if all(isinstance(each[0], torch.Tensor) for each in samples) else samples


class Lost(Data):
    """Its third batch cannot be handed over, as one that finds shared memory full."""

    def __getitem__(self, index):
        return (Unsendable(),) if index == 5 else super().__getitem__(index)


def averaging(runner, folder, validated, **checkpoint):
    """A run of three iterations that averages its weights and validates after the last."""
    torch.manual_seed(0)
    made = runner(folder, iters=3, checkpoint=checkpoint, val_dataloader=DataLoader(Data(), 2), val_cfg={},
                  val_evaluator=Evaluator([]))
    made.register_hook(EMAHook(momentum=0.5))
    forward = made.model.forward

    def observed(inputs, mode='loss'):
        if mode != 'loss':
            validated()
            return [None]    # mmengine looks at the last
        return forward(inputs, mode)

    made.model.forward = observed
    return made


def test_a_stop_while_validating_saves_the_trained_weights_and_not_the_averaged_in_their_place(
        tmp_path, runner):
    averaging(runner, tmp_path / 'whole', lambda: None).train()
    with signals.listening(), pytest.raises(SystemExit) as stop:
        averaging(runner, tmp_path / 'stopped', lambda: os.kill(os.getpid(), signal.SIGTERM),
                  **RARELY).train()
    assert stop.value.code == 128 + signal.SIGTERM
    whole, stopped = (load(tmp_path / name / 'iter_3.pth') for name in ('whole', 'stopped'))
    for part in ('state_dict', 'ema_state_dict'):
        assert all(torch.equal(value, stopped[part][key]) for key, value in whole[part].items()), part
    assert not torch.equal(whole['state_dict']['layer.weight'],
                           whole['ema_state_dict']['module.layer.weight'])
    assert stopped['meta']['iter'] == 3


@pytest.mark.parametrize('number', signals.STOPPING)
def test_a_stop_while_waiting_for_data_saves_what_has_been_trained(tmp_path, runner, number):
    made = runner(tmp_path, kind=ReplayRunner, checkpoint=RARELY,
                  data=DataLoader(Data(lambda: os.kill(os.getpid(), number)), 2))
    with signals.listening(), pytest.raises(SystemExit) as stop:
        made.train()
    assert stop.value.code == 128 + number
    assert load(tmp_path / 'iter_2.pth')['meta']['iter'] == 2


def test_a_stop_before_training_begins_ends_at_once(tmp_path):
    with signals.listening(), pytest.raises(signals.Interrupted) as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(10)
    assert stop.value.code == 128 + signal.SIGHUP


def test_a_stop_at_the_end_of_an_epoch_saves_it(tmp_path, runner):
    asked = []

    def stop():    # the second time the sixth is drawn: in the first epoch it was trained on
        asked.append(0)
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    made = runner(tmp_path, iters=3, kind=ReplayRunner, checkpoint=RARELY | dict(by_epoch=True),
                  data=DataLoader(Data(stop), 8))
    with signals.listening(), pytest.raises(SystemExit):
        made.train()
    meta = load(tmp_path / 'epoch_1.pth')['meta']
    assert (meta['epoch'], meta['iter']) == (1, 1)


def test_under_nohup_a_hangup_is_none_of_a_runs_business():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@contextlib.contextmanager
def iterating(data, **options):
    iterator = iter(patient(DataLoader(data, 2, num_workers=1, **options)))
    try:
        yield iterator
    finally:
        iterator._shutdown_workers()


def test_data_workers_leave_signals_to_the_main_process_and_end_with_it():
    with iterating(Data(), prefetch_factor=1) as batches:
        next(batches)
        process, = batches._workers
        for number in signals.STOPPING:
            subprocess.run(['kill', f'-{number}', str(process.pid)], check=True)
        time.sleep(0.2)
        assert process.is_alive() and len(list(batches)) == 3
    with iterating(Data(), prefetch_factor=1) as batches:
        next(batches)
        process, = batches._workers
        process.terminate()    # as torch does with one that hangs
        process.join(10)
        assert process.exitcode == 0


def test_a_worker_that_hangs_ends_the_run_with_what_it_trained_and_the_names_of_the_causes(tmp_path, runner):
    loader = DataLoader(Data(lambda: time.sleep(60)), 2, num_workers=1, timeout=2)
    with pytest.raises(RunError, match=r'no batch came for 2 s from the 1 workers.*/dev/shm.*num_workers'):
        runner(tmp_path, kind=ReplayRunner, checkpoint=RARELY, data=loader).train()
    assert load(tmp_path / 'iter_2.pth')['meta']['iter'] == 2


def test_a_batch_that_finds_shared_memory_full_ends_the_run_instead_of_hanging_it(tmp_path, runner):
    began = time.monotonic()
    with pytest.raises(RunError, match='could not be handed .*No space left.*/dev/shm has .* MB free'):
        runner(tmp_path, kind=ReplayRunner, checkpoint=RARELY,
               data=DataLoader(Lost(), 2, num_workers=1, collate_fn=together)).train()
    assert time.monotonic() - began < 30 and (tmp_path / 'iter_2.pth').exists()


def test_every_loader_with_workers_gives_up_some_time_and_one_that_says_when_keeps_to_it():
    assert patient(DataLoader(Data(), 2, num_workers=1)).timeout == 600
    assert patient(DataLoader(Data(), 2, num_workers=1, timeout=5)).timeout == 5
    assert patient(DataLoader(Data(), 2)).timeout == 0
