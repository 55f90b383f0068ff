"""Two processes give what one gives for the whole batch, without a search for unused parameters."""
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
WORKER = Path(__file__).with_name('data_parallel_worker.py')


def run(world, out):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    environment = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    processes = [subprocess.Popen([sys.executable, str(WORKER), str(rank), str(world), port, str(out)],
                                  env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                  text=True) for rank in range(world)]
    for process in processes:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output[-3000:]
    return torch.load(out, weights_only=True)


@pytest.mark.slow
def test_two_processes_match_one_during_the_warm_up_and_after(tmp_path):
    one, two = run(1, tmp_path / 'one.pth'), run(2, tmp_path / 'two.pth')
    assert one[0]['losses']['loss_hgd'] == 0 < one[1]['losses']['loss_hgd']
    for single, double in zip(one, two, strict=True):
        assert double['losses'] == pytest.approx(single['losses'], rel=1e-5)
        for name, expected in single['gradients'].items():
            scale = expected.abs().max().clamp(min=1e-3)
            assert ((double['gradients'][name] - expected).abs().max() / scale) < 1e-5, name
