import io
import signal
import subprocess
import sys
import time

import pytest

from hgd_det.experiments import processes
from hgd_det.experiments.processes import Bar, Line, clock, eta, interruptible, locked, reached, start, stop

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='processes of Linux')


def test_how_far_a_training_is_and_how_long_it_takes_is_read_from_its_log(tmp_path):
    log = tmp_path / 'log.txt'
    assert reached(log) is None and eta(log) is None
    log.write_text('Iter(train) [ 20/500]  lr: 1  eta: 0:05:07  time: 1\nIter(val) [10/10]\n')
    assert reached(log) == (20, 500) and eta(log) == 307
    log.write_text('Epoch(train)  [2][ 50/100]  lr: 1  eta: 1 day, 2:00:01  time: 1\n')
    assert reached(log) is None and eta(log) == 26 * 3600 + 1


def test_a_process_ends_with_the_one_that_started_it(tmp_path):
    program = ('import sys; from pathlib import Path\n'
               'from hgd_det.experiments.processes import locked, start\n'
               'with locked(sys.argv[1]) as lock:\n'
               '    child = start([sys.executable, "-c", "import time; time.sleep(60)"],'
               ' Path(sys.argv[1], "log"), lock)\n'
               '    print(child.pid, flush=True)\n'
               '    child.wait()\n')
    command = [sys.executable, '-c', program, str(tmp_path)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    with locked(tmp_path, patience=10):    # the child shared the lock, and is gone
        pass


def test_what_does_not_stop_is_killed_with_all_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr('hgd_det.experiments.processes.GRACE', 0.5)
    program = 'trap "" TERM; echo ready; sleep 60 & wait; wait'
    with locked(tmp_path) as lock:
        deaf = start(['bash', '-c', program], tmp_path / 'log', lock)
        while 'ready' not in (tmp_path / 'log').read_text():
            time.sleep(0.02)
        stop([deaf])
    assert deaf.returncode == -signal.SIGKILL
    with locked(tmp_path, patience=5):
        pass


def test_sigterm_is_an_interruption():
    with pytest.raises(KeyboardInterrupt), interruptible():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_bar_tells_the_time_left_of_what_is_done_now(monkeypatch):
    now, text = [100.0], io.StringIO()
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    bar = Bar(Line(text, every=0), 'phase')
    bar.draw(200, 500)    # resumed there
    now[0] += 10
    bar.draw(300, 500)
    assert text.getvalue().splitlines() == ['phase [#########...............] 200/500, ? left',
                                            'phase [##############..........] 300/500, 0:00:20 left']


@pytest.mark.parametrize('seconds, text', [(0, '0:00:00'), (59.6, '0:01:00'), (90061, '25:01:01'),
                                           (-3, '0:00:00')])
def test_a_time_is_written_as_a_clock_shows_it(seconds, text):
    assert clock(seconds) == text


def test_trainings_take_half_of_the_cores_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS')
    monkeypatch.setattr('os.sched_getaffinity', lambda pid: set(range(8)))
    assert (processes.threads(), processes.threads(2), processes.threads(9)) == (4, 2, 1)
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    assert processes.threads(2) == 3


def test_the_end_of_a_log_is_what_the_training_said(tmp_path):
    log = tmp_path / 'log.txt'
    torchrun = '1122 00:51:21.0 9 torch/distributed/'
    log.write_text(f'W{torchrun}run.py:774] Setting OMP_NUM_THREADS\n'
                   'one\nhalf\rtwo\nno such config\n'
                   f'W{torchrun}elastic/multiprocessing/api.py:897] Sending SIGTERM\n'
                   f'E{torchrun}elastic/multiprocessing/api.py:1002] failed (exitcode: 2) local_rank: 0\n'
                   'Traceback (most recent call last):\n  ChildFailedError\n')
    assert processes.tail(log) == 'one\ntwo\nno such config'
    assert processes.tail(log, 1) == 'no such config'
