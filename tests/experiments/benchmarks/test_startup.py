"""The benchmark of starting: what it starts, and whose time it counts."""
import subprocess
import time
from types import SimpleNamespace

import pytest

from hgd_det.experiments.benchmarks import startup


def test_help_is_that_of_the_checkout():
    assert 'usage: hgd-det' in startup.python([*startup.CLI, '--help'])


def test_time_is_that_of_the_processes_it_started():
    before = startup.of_children()
    startup.python(['-c', 'sum(range(3_000_000))'])
    assert 0.01 < startup.of_children() - before < 5
    now, until = startup.of_children(), time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert startup.of_children() == now


def test_help_and_inspect_are_measured_beside_the_import_of_mmdet(monkeypatch):
    seconds = {'--help': 0.1, 'inspect': 4.4, '-c': 4.0}
    clock = [0.0]

    def python(arguments):
        clock[0] += next(value for name, value in seconds.items() if name in arguments)
    monkeypatch.setattr(startup, 'python', python)
    monkeypatch.setattr(startup, 'of_children', lambda: clock[0])
    monkeypatch.setattr(startup.time, 'perf_counter', lambda: clock[0])
    shown, of_import, inspect = startup.run(SimpleNamespace(rounds=2))
    assert (shown.ours, shown.other, shown.met) == (pytest.approx(0.1), 0.5, True)
    assert of_import.ratio == pytest.approx(40)
    assert inspect.ratio == pytest.approx(1.1) and inspect.met


def test_a_start_that_fails_is_no_measurement():
    with pytest.raises(subprocess.CalledProcessError):
        startup.python([*startup.CLI, 'no-such-verb'])
