"""Two processes give what one gives for the whole batch, without a search for unused parameters."""
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
WORKER = Path(__file__).with_name('data_parallel_worker.py')

EQUAL = {
    'hgd': dict(hgd=dict(type='HGD', weight='auto', warmup=1, macro='variance'),
                focal=dict(type='HGD', weight=2.0, macro='focal', micro='variance')),
    'scores': dict(kd=dict(type='LogitKD'), logits=dict(type='LogitL2')),
    'maps': dict(attention=dict(type='AttentionTransfer', mode='sum'), nst=dict(type='NST'),
                 fsp=dict(type='FSP', detection=1.0), hint=dict(type='FitNets', detection=1.0)),
    'factor': dict(factor=dict(type='FactorTransfer', pretrain=.1)),   # paraphraser first, then transfer
    'gradient': dict(gradient=dict(type='GradientAttention')),
    'branches': dict(one=dict(type='ONE', rampup=0)),
    'peers': dict(dml=dict(type='DML')),
    'widths': dict(netaug=dict(type='NetAug')),
}
# These see one process's images only, as BatchNorm does; they cannot be equal, but must run.
OF_A_PROCESS = {
    'relations among the objects at hand': dict(relational=dict(type='Relational')),
    'BatchNorm in the connectors': dict(boundary=dict(type='ActivationBoundary', detection=1.0)),
    'BatchNorm in the branches': dict(own=dict(type='BeYourOwnTeacher')),
    'as many positives as its teacher picks': dict(lad=dict(type='LAD')),
}


def run(world, out, cases):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    environment = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    processes = [subprocess.Popen([sys.executable, str(WORKER), str(rank), str(world), port, str(out),
                                   json.dumps(cases)], env=environment, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True) for rank in range(world)]
    for process in processes:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output[-3000:]
    return torch.load(out, weights_only=True)


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp('parallel')
    return (run(1, folder / 'one.pth', EQUAL), run(2, folder / 'two.pth', EQUAL | OF_A_PROCESS))


@pytest.mark.slow
@pytest.mark.parametrize('case', EQUAL)
def test_two_processes_match_one(case, results):
    one, two = (result[case] for result in results)
    for single, double in zip(one, two, strict=True):
        # DML's is a mean over two detectors' hard sets together, of which each process has another number
        losses = [{k: v for k, v in step['losses'].items() if k != 'dml_agreement'}
                  for step in (single, double)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        for name, expected in single['gradients'].items():
            scale = expected.abs().max().clamp(min=1e-3)
            assert ((double['gradients'][name] - expected).abs().max() / scale) < 1e-5, name


@pytest.mark.slow
def test_the_two_steps_lie_before_and_after_a_warm_up_and_in_both_phases(results):
    before, after = results[0]['hgd']
    assert before['losses']['loss_hgd'] == 0 < after['losses']['loss_hgd']
    first, then = results[0]['factor']
    assert first['losses']['loss_factor'] == 0 < first['losses']['loss_factor_aside']
    assert then['losses']['loss_factor'] > 0 and 'loss_factor_aside' not in then['losses']


@pytest.mark.slow
@pytest.mark.parametrize('case', OF_A_PROCESS)
def test_terms_with_statistics_of_their_process_train_on_both(case, results):
    for step in results[1][case]:
        assert torch.tensor(list(step['losses'].values())).isfinite().all()
        assert all(gradient.isfinite().all() for gradient in step['gradients'].values())
        assert any(gradient.any() for gradient in step['gradients'].values())
