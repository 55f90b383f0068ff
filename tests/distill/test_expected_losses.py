"""Twenty steps of one term of each kind, against losses that are kept: what changes them must say so.

A change that means to is recorded with HGD_DET_EXPECTED=write in the environment; CHANGELOG.md says it.
"""
import json
import os
from pathlib import Path

import pytest
import torch

from hgd_det.distill.schedule import Progress
from hgd_det.testing import every_term, make_batch, make_distiller, tiny_ssd, train_step

FOLDER = Path(__file__).parent.parent / 'expected'
STEPS = 20
KINDS = {
    'plain': None,
    'maps': 'HGD',                      # a map term with an imitation of its own
    'maps_of_heads': 'Hint',            # a map term that is its distance
    'maps_in_boxes': 'FineGrained',     # with anchors and boxes
    'scores': 'LogitKD',                # a head term
    'distributions': 'LD',
    'targets': 'LAD',                   # moves targets, teaches nothing else
    'gradients': 'GradientAttention',   # differentiates twice
    'phases': 'FactorTransfer',         # parts of its own learn first
    'itself': 'BeYourOwnTeacher',       # no teacher
    'peer': 'DML',                      # runs a model
}


def losses(kind):
    name = KINDS[kind]
    terms = {} if name is None else dict(term={**every_term()[name], 'weight': 'auto'} if name == 'Hint'
                                         else every_term()[name])
    student, teacher = tiny_ssd(with_bn=False), tiny_ssd(1 / 8, with_bn=False)
    if name == 'LD':
        for config in (student, teacher):
            config['bbox_head'] |= dict(type='DistributionSSDHead', n=4, lo=-4.0, hi=4.0)
    model = make_distiller(terms, student, dict(model=teacher, checkpoint='untrained'))
    optimizer = torch.optim.SGD(model.parameters(), 2e-4, momentum=0.9)
    found = []
    for step in range(STEPS):
        model.progress = Progress(step, STEPS)
        found.append(train_step(model, make_batch(seed=step % 4), optimizer)[0].item())
    return found


@pytest.mark.parametrize('kind', KINDS)
def test_twenty_steps_lose_what_they_lost(kind):
    path, found = FOLDER / f'{kind}.json', losses(kind)
    if os.environ.get('HGD_DET_EXPECTED') == 'write':
        path.write_text(json.dumps(dict(term=KINDS[kind], losses=found), indent=1) + '\n')
    expected = json.loads(path.read_text())
    assert expected['term'] == KINDS[kind]
    # processors round differently (AVX-512 or not), and twenty steps carry it on
    assert found == pytest.approx(expected['losses'], rel=1e-3)
