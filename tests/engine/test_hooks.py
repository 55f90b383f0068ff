import io
import itertools
import os
import signal
from pathlib import Path

import pytest
import torch

from hgd_det.checkpoint import load
from hgd_det.engine import hooks, signals
from hgd_det.engine.progress import ProgressHook
from hgd_det.errors import UserError


def names(folder):
    return sorted(path.name for path in Path(folder).glob('*.pth'))


def fail_writes(monkeypatch, *which):
    """The disk is full at these checkpoint writes (counted from 1)."""
    count, real = itertools.count(1), hooks.atomic_write

    def write(data, path):
        if str(path).endswith('.pth') and next(count) in which:
            raise OSError(28, 'No space left on device')
        real(data, path)

    monkeypatch.setattr(hooks, 'atomic_write', write)


def test_the_last_checkpoints_are_kept_and_every_one_is_intact(tmp_path, runner):
    runner(tmp_path, checkpoint=dict(max_keep_ckpts=2)).train()
    assert names(tmp_path) == ['iter_5.pth', 'iter_6.pth']
    assert load(tmp_path / 'iter_6.pth')['message_hub']['runtime_info']['keep_ckpt_ids'] == [5, 6]
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_6.pth')


def test_the_old_checkpoint_is_removed_only_after_the_new_one_stands(tmp_path, monkeypatch, runner):
    seen, real = [], hooks.atomic_write

    def write(data, path):
        seen.append(names(tmp_path))
        real(data, path)

    monkeypatch.setattr(hooks, 'atomic_write', write)
    runner(tmp_path, iters=3, checkpoint=dict(max_keep_ckpts=1)).train()
    # two writes a step, the checkpoint and the pointer to it: the predecessor is there at both
    assert seen == [[], ['iter_1.pth'], ['iter_1.pth'], ['iter_1.pth', 'iter_2.pth'],
                    ['iter_2.pth'], ['iter_2.pth', 'iter_3.pth']]


def test_a_full_disk_is_reported_and_training_goes_on(tmp_path, monkeypatch, runner):
    fail_writes(monkeypatch, 3, 4)
    run = runner(tmp_path, checkpoint=dict(max_keep_ckpts=2))
    reported = []
    monkeypatch.setattr(run.logger, 'error', reported.append)
    run.train()
    assert len(reported) == 2 and 'No space left' in reported[0] and 'iter_2.pth' in reported[0]
    assert names(tmp_path) == ['iter_5.pth', 'iter_6.pth']
    assert load(tmp_path / 'iter_5.pth')['message_hub']['runtime_info']['keep_ckpt_ids'] == [2, 5]


def test_a_full_disk_at_the_end_is_an_error_that_names_the_last_good_checkpoint(
        tmp_path, monkeypatch, runner):
    fail_writes(monkeypatch, 6)
    with pytest.raises(UserError, match=r'No space left.*resume from .*iter_5\.pth'):
        runner(tmp_path, checkpoint=dict(max_keep_ckpts=1)).train()
    assert names(tmp_path) == ['iter_5.pth']
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_5.pth')


def test_the_previous_best_stays_when_the_new_one_cannot_be_written(tmp_path, monkeypatch, runner):
    run = runner(tmp_path, iters=1,
                 checkpoint=dict(interval=1000, save_last=False, save_best='acc'))
    run.train()
    saver = next(hook for hook in run.hooks if isinstance(hook, hooks.AtomicCheckpointHook))
    saver.after_val_epoch(run, {'acc': 0.1})
    fail_writes(monkeypatch, 1)
    saver.after_val_epoch(run, {'acc': 0.2})
    best, = names(tmp_path)
    assert run.message_hub.get_info('best_score') == 0.1 and saver.best_ckpt_path.endswith(best)
    saver.after_val_epoch(run, {'acc': 0.15})
    assert names(tmp_path) == [Path(saver.best_ckpt_path).name]
    assert run.message_hub.get_info('best_score') == 0.15


def test_what_a_killed_writer_left_is_cleared_away(tmp_path, runner):
    (tmp_path / '.iter_9.pth.123.tmp').write_bytes(b'half')
    runner(tmp_path, iters=1).train()
    assert not list(tmp_path.glob('.*.tmp'))


def test_resuming_continues_exactly_and_refuses_another_model(tmp_path, runner, Model):
    runner(tmp_path / 'whole').train()
    runner(tmp_path / 'parts', iters=4).train()
    runner(tmp_path / 'parts', resume=True, load_from=str(tmp_path / 'parts/iter_4.pth')).train()
    whole, parts = (load(tmp_path / name / 'iter_6.pth')['meta']['iter']
                    for name in ('whole', 'parts'))
    assert whole == parts == 6
    with pytest.raises(UserError, match=r'2 misshaped: layer.weight \(2x2 given, 5x2 wanted\)'):
        runner(tmp_path / 'x', Model(5), resume=True,
               load_from=str(tmp_path / 'parts/iter_4.pth')).train()


def test_resuming_from_weights_alone_is_refused(tmp_path, runner, Model):
    torch.save({'state_dict': Model().state_dict(), 'meta': {}}, tmp_path / 'weights.pth')
    with pytest.raises(UserError, match='load_from=PATH'):
        runner(tmp_path / 'x', resume=True, load_from=str(tmp_path / 'weights.pth')).train()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_where_training_stands_and_ends_with_its_status(tmp_path, number, runner, Model):
    before = signal.getsignal(number)
    model = Model(at={3: lambda: os.kill(os.getpid(), number)})
    with signals.listening(), pytest.raises(SystemExit) as stop:
        runner(tmp_path, model, checkpoint=dict(interval=1000)).train()
    assert stop.value.code == 128 + number
    assert names(tmp_path) == ['iter_3.pth'] and load(tmp_path / 'iter_3.pth')['meta']['iter'] == 3
    assert signal.getsignal(number) == before


def test_a_signal_in_a_run_counted_in_epochs_keeps_the_last_epoch(tmp_path, runner, Model):
    model = Model(at={6: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    with signals.listening(), pytest.raises(SystemExit):
        runner(tmp_path, model, checkpoint=dict(by_epoch=True)).train()
    assert names(tmp_path) == ['epoch_1.pth']


def test_a_second_signal_has_its_usual_effect(tmp_path, runner, Model):
    def interrupt():
        # to this very thread: two signals to the process may arrive as one
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    # a job in the background of a shell begins with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with signals.listening(), pytest.raises(KeyboardInterrupt):
            runner(tmp_path, Model(at={2: interrupt})).train()
    finally:
        signal.signal(signal.SIGINT, before)


def test_without_listening_signals_keep_their_effect_and_training_goes_on(tmp_path, runner):
    runner(tmp_path, iters=2).train()
    assert names(tmp_path) == ['iter_1.pth', 'iter_2.pth']


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_one_line_with_the_time_left_on_a_terminal_only(tmp_path, runner):
    run = runner(tmp_path, iters=4, checkpoint=dict(interval=1000))
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        hook = ProgressHook(stream)
        hook.interval = 0
        run.register_hook(hook)
    run.train()
    assert pipe.getvalue() == ''
    drawn = [part for part in terminal.getvalue().split('\r\x1b[K') if part]
    assert drawn[0].startswith('train [........................] 0/4')
    assert drawn[-1].startswith('train [##################......] 3/4')
    assert drawn[-1].endswith('left')
    assert '\n' not in terminal.getvalue() and terminal.getvalue().endswith('\r\x1b[K')
