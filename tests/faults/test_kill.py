"""A run that is killed anywhere, finds the disk full or is told to stop comes to the same end, bit for bit.

HGD_DET_FAULTS is the number of kills; `make test-faults` takes 50. A third of them asks, with a signal to the
whole process group, as batch systems, `timeout` and terminals do.
"""
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from hgd_det.checkpoint import load, newest_intact

pytestmark = [pytest.mark.slow, pytest.mark.faults,
              pytest.mark.skipif(not sys.platform.startswith('linux'), reason='forks and limits of Linux')]
ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get('HGD_DET_FAULTS', 5))
INTERVAL, LAST = 2, 'iter_20.pth'
PARTS = ('state_dict', 'distill', 'ema_state_dict', 'optimizer', 'param_schedulers')
# in the middle of a checkpoint, before it is renamed, in the middle of the pointer to it
WRITING = {'half a checkpoint': dict(file='iter_*.pth', moment='half'),
           'a whole checkpoint, not renamed': dict(file='iter_*.pth', moment='whole'),
           'half of last_checkpoint': dict(file='last_checkpoint', moment='half')}
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# what the process, or its data worker, is doing when the group is told to stop: the call, and which one of it
MOMENTS = {'starting': dict(where='mmengine.runner.runner:Runner.build_model', call=1),
           'in a step': dict(where='mmengine.model.base_model.base_model:BaseModel.train_step', call=5),
           'writing a checkpoint': dict(file='iter_*.pth', writes=[2], moment='whole'),
           'validating': dict(where='mmengine.runner.loops:ValLoop.run_iter', call=1),
           'waiting for data': dict(where='hgd_det.engine.replay:Seeded.__call__', call=6)}


class Training:
    """A process group that trains, started by a :class:`Worker`."""

    def __init__(self, group: int, answers, log: Path):
        self.group, self.answers, self.log = group, answers, log

    def wait(self, seconds: float) -> int | None:
        """The exit status, or None if it has not ended by then."""
        ready, _, _ = select.select([self.answers], [], [], seconds)
        return int(self.answers.readline()) if ready else None

    def kill(self) -> int:
        os.killpg(self.group, signal.SIGKILL)
        return self.wait(60)

    def stop(self, number: int) -> None:
        """The whole group, data workers too."""
        os.killpg(self.group, number)

    def reached(self) -> int:
        """The last iteration that the log names, 0 before the first."""
        done = re.findall(r'Iter\(train\) \[ *(\d+)/', self.log.read_text() if self.log.exists() else '')
        return int(done[-1]) if done else 0

    def end(self, seconds: float = 600) -> int:
        status = self.wait(seconds)
        if status is None:
            self.kill()
            pytest.fail(f'hangs after {seconds} s:\n{self.log.read_text()[-2000:]}')
        return status


class Worker:
    """worker.py, which has imported everything: a training starts at once."""

    def __init__(self, config: Path, logs: Path):
        self.config, self.logs, self.started = config, logs, 0
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name('worker.py')], bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'))

    def start(self, folder: Path, fault: dict | None = None, log: Path | None = None) -> Training:
        """`train --resume` in this folder, perhaps with a fault of `worker.break_writing`."""
        self.started += 1
        log = log or self.logs / f'{self.started}.log'
        order = dict(arguments=[str(self.config), '--resume', '--work-dir', str(folder)], log=str(log),
                     fault=fault)
        self.process.stdin.write(json.dumps(order).encode() + b'\n')
        return Training(int(self.process.stdout.readline()), self.process.stdout, log)


@pytest.fixture(scope='module')
def worker(lasting, tmp_path_factory):
    worker = Worker(lasting, tmp_path_factory.mktemp('logs'))
    yield worker
    worker.process.stdin.close()
    worker.process.wait(60)


def leaves(value, place: str = ''):
    """Every value in a nested checkpoint with its place; a tensor by its bytes."""
    if isinstance(value, dict):
        value = value.items()
    elif isinstance(value, (list, tuple)):
        value = enumerate(value)
    else:
        tensor = isinstance(value, torch.Tensor)
        yield place, (value.dtype, value.numpy().tobytes()) if tensor else repr(value)
        return
    for key, inner in value:
        yield from leaves(inner, f'{place}.{key}')


def state(folder: Path) -> dict:
    """All of the last checkpoint but for times and file names."""
    content = load(folder / LAST)
    return {place: leaf for part in PARTS for place, leaf in leaves(content[part], part)}


@pytest.fixture(scope='module')
def whole(worker, tmp_path_factory):
    """The end of an uninterrupted run, and the seconds it took."""
    folder, began = tmp_path_factory.mktemp('whole'), time.monotonic()
    training = worker.start(folder)
    assert training.end() == 0, training.log.read_text()[-2000:]
    end = state(folder)
    name = 'distill.hgd.balance.count'
    assert {f'distill.{name}', f'ema_state_dict.module.{name}', 'ema_state_dict.steps'} <= end.keys()
    return end, time.monotonic() - began


def same(folder: Path, whole) -> bool:
    end, wanted = state(folder), whole[0]
    assert [place for place in wanted.keys() | end.keys() if wanted.get(place) != end.get(place)] == []
    return True


def leftovers(folder: Path) -> set[Path]:
    return set(folder.glob('.*.tmp'))


def newest(folder: Path) -> int:
    """The iteration a run would resume from; every checkpoint and the pointer must be intact."""
    path, skipped = newest_intact(folder)
    assert not skipped
    kept = {str(path): load(path)['meta']['iter'] for path in folder.glob('*.pth')}
    pointer = folder / 'last_checkpoint'
    assert not pointer.exists() or pointer.read_text() in kept
    return kept[str(path)] if path else 0


def test_a_run_killed_at_any_moment_loses_one_interval_at_most_and_ends_with_the_same_bits(
        worker, whole, tmp_path, capsys):
    chance, kills, lost, runs = random.Random(0), Counter(), Counter(), 0
    while kills.total() < KILLS:
        runs, seen, status = runs + 1, 0, None
        folder = tmp_path / f'run{runs}'
        while status is None:
            before, fault, kind = leftovers(folder), None, 'anywhere'
            number = STOPPING[kills.total() // 3 % 3] if kills.total() % 3 == 2 else None
            if kills.total() % 3 == 1:
                kind = list(WRITING)[(kills.total() - kills['anywhere']) % len(WRITING)]
                fault = WRITING[kind] | dict(writes=[chance.randint(1, 2)], told=str(tmp_path / 'told'))
            training = worker.start(folder, fault)
            if kills.total() == KILLS:  # the last run may end
                status = training.end()
            elif fault:
                while status is None and not (tmp_path / 'told').exists():
                    status = training.wait(0.02)
            else:
                status = training.wait(chance.uniform(0, 0.7 * whole[1]))
            if status is None and number:
                kind = 'told to stop'
                training.stop(number)
                status = training.end(60)
                # before it listens the signal acts as ever
                if status in (128 + number, -number):
                    status, kills[kind] = None, kills[kind] + 1
                    assert 'loads data died' not in training.log.read_text()
            elif status is None:
                status = training.kill()
                (tmp_path / 'told').unlink(missing_ok=True)
                if status == -signal.SIGKILL:  # else it ended at this very moment
                    status, kills[kind] = None, kills[kind] + 1
            seen = max(seen, training.reached())
            if training.reached():
                assert not before & leftovers(folder)
            if status is None:
                lost[seen - newest(folder)] += 1
                assert kind != 'told to stop' or newest(folder) >= training.reached()
        assert status == 0, training.log.read_text()[-2000:]
        assert same(folder, whole) and not leftovers(folder)
    with capsys.disabled():
        print(f'\n{kills.total()} kills in {runs} runs {dict(kills)}: every run ended with the bits of the '
              f'uninterrupted one. Kills by iterations lost: {dict(sorted(lost.items()))}')
    assert max(lost) <= INTERVAL


@pytest.mark.parametrize('moment', MOMENTS)
def test_a_group_told_to_stop_saves_where_it_stands_says_so_and_ends_with_the_same_bits(
        moment, worker, whole, tmp_path):
    for number in STOPPING:
        folder, told = tmp_path / number.name, tmp_path / f'{number.name}.told'
        training = worker.start(folder, MOMENTS[moment] | dict(told=str(told)))
        while not told.exists():
            assert training.wait(0.02) is None, training.log.read_text()[-2000:]
        time.sleep(0.3)    # the other process gets to where it waits
        training.stop(number)
        time.sleep(0.3)
        told.unlink()
        assert training.end(60) == 128 + number, training.log.read_text()[-2000:]
        said = training.log.read_text()
        assert 'Traceback' not in said and 'died' not in said
        assert newest(folder) >= training.reached() and (moment == 'starting' or newest(folder) > 0)
        assert f'Stopped by {number.name}' in said or moment == 'starting'
    assert worker.start(folder).end() == 0 and same(folder, whole)


def test_a_disk_too_full_for_a_checkpoint_is_reported_and_training_goes_on(worker, whole, tmp_path):
    training = worker.start(tmp_path, dict(file='iter_*.pth', writes=[2, 3], moment='full', room=10 ** 6))
    assert training.end() == 0
    said = training.log.read_text()
    assert said.count('could not be written') == 2 and f'last good one is {tmp_path}/iter_2.pth' in said
    assert same(tmp_path, whole) and not leftovers(tmp_path)


def test_a_disk_too_full_for_the_last_checkpoint_fails_the_run_which_resumes(worker, whole, tmp_path):
    training = worker.start(tmp_path, dict(file='iter_*.pth', writes=[10], moment='full', room=10 ** 6))
    assert training.end() == 1
    said = training.log.read_text()
    assert f'last state is lost; free space and resume from {tmp_path}/iter_18.pth' in said
    assert 'Traceback' not in said and newest(tmp_path) == 18
    assert worker.start(tmp_path).end() == 0 and same(tmp_path, whole)


def test_a_disk_on_which_nothing_fits_stops_the_run_with_one_message(worker, whole, tmp_path):
    os.mkfifo(tmp_path / 'pipe')  # a log in a file would be cut off as well
    said = os.open(tmp_path / 'pipe', os.O_RDONLY | os.O_NONBLOCK)
    fault = dict(file='iter_*.pth', writes=list(range(3, 11)), moment='full')
    training = worker.start(tmp_path / 'run', fault, log=tmp_path / 'pipe')
    chunks, status = [], None
    while status is None:
        status = training.wait(0.1)
        with open(os.dup(said), 'rb') as pipe:
            chunks.append(pipe.read() or b'')
    os.close(said)
    text = b''.join(chunks).decode()
    assert status == 1 and 'Traceback' not in text
    assert re.search(r'\nerror: .*could not be written: .*--resume goes on from the newest\n$', text)
    assert newest(tmp_path / 'run') == 4
    assert worker.start(tmp_path / 'run').end() == 0 and same(tmp_path / 'run', whole)


def test_a_process_told_to_stop_saves_and_ends_in_seconds_and_goes_on_bit_for_bit(worker, whole, tmp_path):
    training = worker.start(tmp_path)
    while training.reached() < 7:
        assert training.wait(0.02) is None
    os.kill(training.group, signal.SIGTERM)
    assert training.end(30) == 128 + signal.SIGTERM
    assert f'Stopped by SIGTERM at iteration {newest(tmp_path)}' in training.log.read_text()
    assert 7 <= newest(tmp_path) < 20
    assert worker.start(tmp_path).end() == 0 and same(tmp_path, whole)


def test_a_data_worker_that_is_killed_ends_the_run_with_one_message_and_it_resumes(worker, whole, tmp_path):
    training = worker.start(tmp_path)
    while training.reached() < 5:
        assert training.wait(0.02) is None
    children = Path(f'/proc/{training.group}/task/{training.group}/children').read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    assert training.end() == 1
    said = training.log.read_text()
    assert 'error: a process that loads data died' in said and 'Traceback' not in said
    assert worker.start(tmp_path).end() == 0 and same(tmp_path, whole)
