"""A second live detector, for terms that train one beside the student."""
from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn

from hgd_det.distill.teacher import UNTRAINED, Teacher
from hgd_det.errors import UserError


def make_peer(owner: str, student: nn.Module, config: str | Mapping | None = None,
              checkpoint: str | None = None) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A detector that trains, and what turns the student's batch into its own.

    Args:
        config: What it is, as a teacher's ``model``; None: one like the student.
        checkpoint: Where it begins, as a teacher's. None: at the weights that ``config`` implies, as a run's
            folder does; else at some drawn from torch's current stream.
    """
    if config is None and checkpoint is not None:
        raise UserError(f"{owner}: checkpoint={checkpoint!r} is a peer's, but the peer has no config; "
                        'name it with peer=')
    if checkpoint is not None and not Path(checkpoint).exists():
        raise UserError(f"{owner}: the peer's checkpoint {checkpoint} does not exist; train it first, or "
                        'leave checkpoint out to begin untrained')
    # The current seed may well be that of the run: one like the student would be born its twin
    seed = int(torch.randint(2 ** 62, ()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config is None:
            return _like(student).train(), _as_it_is
        source = Teacher(config, checkpoint)
        source.checkpoint = source.checkpoint or UNTRAINED
        source.fit_input(student.data_preprocessor)
        with quiet():
            source.load()
    return source.detector.requires_grad_().train(), source.inputs


def _like(student: nn.Module) -> nn.Module:
    """The same architecture at other initial weights."""
    peer = copy.deepcopy(student)
    for module in peer.modules():  # what no init_cfg covers keeps what its constructor drew
        if hasattr(module, 'reset_parameters'):
            module.reset_parameters()
    with quiet():
        peer.init_weights()
    return peer


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without a log file mmengine prints how each parameter was drawn: hundreds of lines."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _as_it_is(batch: Tensor) -> Tensor:
    return batch
