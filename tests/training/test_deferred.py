"""What is logged is fetched when a line is due, with the values of every iteration."""
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import LoggerHook
from mmengine.logging import MessageHub

from hgd_det.training.deferred import DeferredInfoHook, DeferredOptimWrapper, deferred


def made(interval=3):
    model = torch.nn.Linear(2, 1)
    wrapper = DeferredOptimWrapper(torch.optim.SGD(model.parameters(), 0.1), clip_grad=dict(max_norm=1.0))
    hub = MessageHub.get_instance(f'deferred {interval} {id(model)}')
    hook = DeferredInfoHook()
    hook._interval = interval
    runner = SimpleNamespace(hooks=[LoggerHook(interval)], optim_wrapper=wrapper, message_hub=hub,
                             train_dataloader=[0] * 100)
    return model, wrapper, hub, hook, runner


def test_losses_and_the_norm_come_together_at_the_loggers_interval():
    model, wrapper, hub, hook, runner = made()
    wanted = []
    for i in range(4):
        loss = model(torch.ones(1, 2)).sum() * (i + 1)
        wrapper.update_params(loss)
        wanted.append(2 ** 0.5 * 3 ** 0.5 / 2 ** 0.5 * (i + 1))     # of weight (1, 1) and bias 1
        hook.after_train_iter(runner, i, outputs=dict(loss=loss, word=3))
        assert ('train/loss' in hub.log_scalars) == (i >= 2)
    hook.after_train(runner)
    assert hub.log_scalars['train/loss'].data[0].size == 4
    assert hub.log_scalars['train/grad_norm'].data[0] == pytest.approx(wanted, rel=1e-5)
    assert hub.log_scalars['train/word'].data[0].tolist() == [3] * 4
    assert wrapper.take_norm() == {}


def test_only_mmengines_own_wrappers_are_replaced():
    assert deferred(dict(optimizer=1)) == dict(optimizer=1, type='DeferredOptimWrapper')
    assert deferred(dict(type='AmpOptimWrapper'))['type'] == 'DeferredAmpOptimWrapper'
    assert deferred(dict(type='Mine'))['type'] == 'Mine'
