"""Trainings as processes of their own: they end with the process that started them, and no two groups of
them work in one folder."""
from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from hgd_det.errors import UserError

TAIL = 15           # lines of a log that are shown where a process failed
GRACE = 60          # seconds in which a process that was told to stop may save its state
DEATH_SIGNAL = 1    # PR_SET_PDEATHSIG of Linux's prctl
TORCHRUN = re.compile(r'[WE]\d{4} .*\btorch/distributed/', re.M)    # the lines that it logs
TORCHRUN_FAILED = re.compile(rf'^{TORCHRUN.pattern}.* failed \(exitcode:', re.M)


@contextlib.contextmanager
def locked(folder: str | Path, patience: float = GRACE) -> Iterator[int]:
    """Hold a folder alone, by a lock that the processes started here share: what an earlier holder that was
    killed left running has ended before the block begins. The lock's file descriptor is for `start`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    until, said = time.monotonic() + patience, False
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise UserError(f'another process works in {folder}; wait for it or end it, or give '
                                    'another --work-dir') from None
                if not said:
                    print(f'waiting for another process in {folder} to end', file=sys.stderr, flush=True)
                said = True
                time.sleep(0.2)
        yield handle
    finally:
        os.close(handle)


def start(command: Sequence[str], log: Path, lock: int, env: Mapping[str, str] | None = None
          ) -> subprocess.Popen:
    """Start a process that writes to a log and is told to stop when this one dies, however that happens.

    It has a session of its own, so that Ctrl-C reaches it once, by `stop`, and not from the terminal too.
    The log holds what this start says; mmengine keeps one of every start.
    """
    parent = os.getpid()
    libc = ctypes.CDLL(None)

    def follow_the_parent() -> None:
        if hasattr(libc, 'prctl'):
            libc.prctl(DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:    # it died before this was said
            os._exit(1)

    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('wb') as out:
        return subprocess.Popen(list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                env={**os.environ, **(env or {})}, pass_fds=(lock,), start_new_session=True,
                                preexec_fn=follow_the_parent)


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return str(listener.getsockname()[1])


def threads(jobs: int = 1) -> int:
    """OMP_NUM_THREADS, or half of this process's cores for `jobs` trainings: each has a process beside it
    that loads data, and threads that must wait for a core hold all others up."""
    given = os.environ.get('OMP_NUM_THREADS')
    return int(given) if given and given.isdigit() else max(1, len(os.sched_getaffinity(0)) // (2 * jobs))


def stop(processes: Iterable[subprocess.Popen]) -> None:
    """Let them end in order, and kill with all they started what does not within a minute."""
    processes = [process for process in processes if process.poll() is None]
    for process in processes:
        process.terminate()
    until = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """In the block SIGTERM is what Ctrl-C is, so that its `finally` clauses run."""
    mine = os.getpid()

    def interrupt(number, frame):
        if os.getpid() != mine:    # a worker that was forked in the block: what it would have done anyway
            os._exit(128 + number)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)    # once is enough
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def tail(log: Path, lines: int = TAIL) -> str:
    """The end of a log, without what progress bars drew over, and of one that torchrun wrote too without its
    account of the failure, which says only which process it was."""
    with log.open('rb') as file:
        file.seek(max(0, log.stat().st_size - 20_000))
        text = file.read().decode(errors='replace')
    if accounts := list(TORCHRUN_FAILED.finditer(text)):
        text = text[:accounts[-1].start()]
    said = [line for line in text.rstrip().split('\n') if not TORCHRUN.match(line)]
    return '\n'.join(line.rpartition('\r')[2] for line in said[-lines:])


def reached(log: Path) -> tuple[int, int] | None:
    """How far the training of a log is, of how many iterations."""
    found = re.findall(r'Iter\(train\) \[ *(\d+)/(\d+)\]', tail(log, 200)) if log.exists() else ()
    return (int(found[-1][0]), int(found[-1][1])) if found else None


def eta(log: Path) -> float | None:
    """The seconds that the training of a log has left by its own account."""
    found = re.findall(r' eta: (?:(\d+) days?, )?(\d+):(\d+):(\d+)', tail(log, 200)) if log.exists() else ()
    if not found:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found[-1])
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def clock(seconds: float) -> str:
    """`1:02:03`; days are counted in hours."""
    whole = max(0, round(seconds))
    return f'{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}'


class Line:
    """What goes on, in one line: drawn over and over on a terminal, elsewhere printed when it is due."""

    def __init__(self, stream=None, every: float = 60.0):
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.every, self._drawn = every, 0.0

    def draw(self, text: str) -> None:
        now = time.monotonic()
        if now - self._drawn < (0.2 if self.live else self.every):
            return
        self._drawn = now
        self.stream.write(f'\r\x1b[K{text}' if self.live else f'{text}\n')
        self.stream.flush()

    def say(self, text: str) -> None:
        """A line that stays, above the one that is drawn."""
        self.clear()
        print(text, file=self.stream, flush=True)

    def clear(self) -> None:
        if self.live:
            self.stream.write('\r\x1b[K')
            self.stream.flush()


class Bar:
    """How far one phase is and how long it will take, on a `Line`."""

    def __init__(self, line: Line, what: str):
        self.line, self.what = line, what
        self._began, self._first = time.monotonic(), None

    def draw(self, done: int, total: int) -> None:
        if self._first is None:    # a resumed phase did not do all that is done
            self._first, self._began = done, time.monotonic()
        made = done - self._first
        left = clock((time.monotonic() - self._began) / made * (total - done)) if made > 0 else '?'
        filled = 24 * done // max(total, 1)
        self.line.draw(f'{self.what} [{"#" * filled}{"." * (24 - filled)}] {done}/{total}, {left} left')
