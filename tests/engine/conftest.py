"""A training of a few numbers, with the hooks that every run has."""
import itertools

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

import hgd_det.engine.hooks
import hgd_det.engine.progress
import hgd_det.engine.signals  # noqa: F401  what the stub names
from hgd_det.compat.guard import guard_mmengine
from hgd_det.engine.loading import patient

_names = itertools.count()


class Model(BaseModel):
    """A regression of two numbers; `at` maps an iteration to something to do in it."""

    def __init__(self, width=2, at=None):
        super().__init__()
        self.layer = nn.Linear(2, width)
        self.at, self.seen = at or {}, 0

    def forward(self, inputs, mode='loss'):
        if mode != 'loss':
            return []
        self.seen += 1
        self.at.get(self.seen, lambda: None)()
        return {'loss': self.layer(inputs).square().mean()}


def make_runner(work_dir, model=None, iters=6, checkpoint=None, kind=Runner, data=None, **kwargs):
    guard_mmengine()
    if data is None:
        data = DataLoader([(torch.rand(2),) for _ in range(8)], 2)
    by_epoch = (checkpoint or {}).get('by_epoch', False)
    return kind(
        model or Model(), str(work_dir), train_dataloader=patient(data),
        train_cfg=dict(by_epoch=True, max_epochs=iters) if by_epoch
        else dict(by_epoch=False, max_iters=iters),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=[dict(type='OneCycleLR', eta_max=0.1, total_steps=100, by_epoch=False)],
        default_hooks=dict(checkpoint=dict(type='AtomicCheckpointHook', interval=1, by_epoch=False)
                           | (checkpoint or {})),
        custom_hooks=[dict(type='StopHook'), dict(type='ProgressHook')],
        log_level='ERROR', experiment_name=f'hooks{next(_names)}', randomness=dict(seed=0),
        **kwargs)


@pytest.fixture(name='Model')
def model():
    return Model


@pytest.fixture
def runner():
    return make_runner
