"""A process that has imported everything and forks a training for each line of its input.

A line is the arguments of :func:`train` as JSON; the answer is the id of the training's process group and,
when that has ended, its exit status.
"""
import contextlib
import fnmatch
import importlib
import json
import os
import resource
import runpy
import sys
import time
from pathlib import Path

from yapf.yapflib import yapf_api

TOOL = Path(__file__).resolve().parents[2] / 'tools/train.py'
NEEDED = ('hgd_det.registered', 'hgd_det.cli.main', 'hgd_det.cli.train', 'hgd_det.engine.generations',
          'hgd_det.engine.health', 'hgd_det.engine.identity', 'mmdet.engine', 'mmdet.visualization',
          'torch._dynamo')


def main() -> None:
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # some modules print while they are imported
    # the layout of the config's text, anew for every checkpoint, takes longer than the training here
    yapf_api.FormatCode = lambda text, **style: (text, True)
    for module in NEEDED:
        importlib.import_module(module)
    threads = len(os.listdir('/proc/self/task'))
    assert threads == 1, f'{threads} threads: a child of fork() would have one of them'
    for line in sys.stdin:
        child = os.fork()
        if not child:
            train(**json.loads(line))
        os.setpgid(child, child)
        print(child, file=answers, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def train(arguments: list[str], log: str, fault: dict | None) -> None:
    """`tools/train.py ARGUMENTS` with its output in a file, and with a fault at some write, or a pause."""
    os.setpgid(0, 0)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream.fileno())
        stream.reconfigure(line_buffering=True)
    if fault:
        (pause if 'where' in fault else break_writing)(**fault)
    sys.argv = [str(TOOL), *arguments]
    status = 1
    try:
        runpy.run_path(str(TOOL), run_name='__main__')
    except SystemExit as end:
        status = end.code
    except BaseException:  # as Python's own end of a program
        sys.excepthook(*sys.exc_info())
    os._exit(status)


def until_gone(told: Path) -> None:
    """Say that the moment has come, and let it last until that is taken away."""
    told.touch()
    until = time.monotonic() + 600
    while told.exists() and time.monotonic() < until:
        time.sleep(0.01)


def pause(where: str, call: int, told: str) -> None:
    """Hold a process in this call (from 1) of `module:Class.method`."""
    place, _, path = where.partition(':')
    owner, name = path.split('.')
    owner = getattr(importlib.import_module(place), owner)
    sound, number = getattr(owner, name), 0

    def method(*args, **kwargs):
        nonlocal number
        number += 1
        if number == call:
            until_gone(Path(told))
        return sound(*args, **kwargs)

    setattr(owner, name, method)


def break_writing(file: str, writes: list[int], moment: str, told: str = '', room: int = 0) -> None:
    """At these writes (from 1) of files of this name wait to be killed, or let the disk be full.

    `half` and `whole` are the part of the content that is written by then, and the file `told` appears.
    With `full` no file can grow beyond `room` bytes from the first of these writes to the next that is none.
    """
    from hgd_det import checkpoint
    sound, number = checkpoint.replacing, 0

    def wait():
        until_gone(Path(told))

    class Half:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            self.file.write(data[:len(data) // 2])
            self.file.flush()
            wait()

    @contextlib.contextmanager
    def replacing(path):
        nonlocal number
        ours = fnmatch.fnmatch(Path(path).name, file)
        number += ours
        due = ours and number in writes
        if ours and moment == 'full':
            limit = room if due else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with sound(path) as out:
            yield Half(out) if due and moment == 'half' else out
            if due and moment == 'whole':
                out.flush()
                wait()

    checkpoint.replacing = replacing


if __name__ == '__main__':
    main()
