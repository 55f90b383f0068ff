"""The weights in a checkpoint: whose they are, and whether they fit a model."""
from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hgd_det.errors import UserError


def student_state_dict(checkpoint: Mapping) -> OrderedDict:
    """The plain detector's weights: without the terms' (`distill.`), without a wrapper's prefix."""
    weights = _weights(checkpoint)
    kept = OrderedDict((key, value) for key, value in _tensors(weights) if not key.startswith('distill.'))
    if not kept:
        raise UserError('the checkpoint holds no weights; its keys are '
                        f'{", ".join(map(str, list(weights)[:8])) or "none"}')
    if hasattr(weights, '_metadata'):  # lets modules convert weights of their own earlier versions
        kept._metadata = weights._metadata
    return kept


def peer_state_dict(checkpoint: Mapping, term: str) -> OrderedDict:
    """The weights of the detector that a term trained beside the student (`distill.TERM.peer.`)."""
    weights, beside = _weights(checkpoint), checkpoint.get('distill')
    peers: dict[str, OrderedDict] = {}
    for part in (weights, beside if isinstance(beside, Mapping) else {}):
        for key, value in _tensors(part):
            if found := re.fullmatch(r'distill\.(\w+)\.peer\.(.+)', key):
                peers.setdefault(found[1], OrderedDict())[found[2]] = value
    if term not in peers:
        raise UserError(f'the checkpoint holds no peer of a term {term!r}; '
                        + (f'it holds that of {", ".join(map(repr, peers))}' if peers else
                           'it holds none at all. DML trains one, and every checkpoint of its run has it; an '
                           'exported student does not'))
    prefix, kept = f'distill.{term}.peer.', peers[term]
    if hasattr(weights, '_metadata'):
        kept._metadata = OrderedDict((key[len(prefix):], value) for key, value in weights._metadata.items()
                                     if f'{key}.'.startswith(prefix))
    return kept


def _weights(checkpoint: Mapping) -> Mapping:
    return next((checkpoint[key] for key in ('state_dict', 'model')
                 if isinstance(checkpoint.get(key), Mapping)), checkpoint)


def _tensors(weights: Mapping) -> Iterator[tuple[str, torch.Tensor]]:
    """The named tensors among the values, without a wrapper's prefix."""
    for key, value in weights.items():
        if isinstance(key, str) and isinstance(value, torch.Tensor):
            yield key.removeprefix('module.'), value


def refuse_not_finite(weights: Mapping, what: str | Path) -> None:
    """A detector computes with NaN or inf in silence, and finds nothing: name the tensors that hold any."""
    sick = [f'{key} ({int((~value.isfinite()).sum()):,} of {value.numel():,} values)'
            for key, value in _tensors(weights) if value.is_floating_point() and not value.isfinite().all()]
    if sick:
        named = ', '.join(sick[:8])
        more = f', and {len(sick) - 8} more' if len(sick) > 8 else ''
        raise UserError(f'{what}: {len(sick)} of its tensors hold values that are not finite (NaN, inf): '
                        f'{named}{more}. Such a detector finds nothing. Take a checkpoint from before its '
                        'training went wrong, or a copy that is whole')


def class_names(checkpoint: Mapping) -> tuple[str, ...] | None:
    """The classes that the run recorded; a file of another tool may hold anything in their place."""
    found = checkpoint
    for key in ('meta', 'dataset_meta', 'classes'):
        found = found.get(key) if isinstance(found, Mapping) else None
    found = (found,) if isinstance(found, str) else found
    named = isinstance(found, (list, tuple)) and all(isinstance(name, str) for name in found)
    return tuple(found) or None if named else None


@dataclass(frozen=True)
class Difference:
    """How weights differ from a model's: keys it lacks, does not know, or has in another shape."""

    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshaped)

    def __str__(self) -> str:
        parts = []
        for name in ('missing', 'unexpected', 'misshaped'):
            if keys := getattr(self, name):
                more = f', and {len(keys) - 8} more' if len(keys) > 8 else ''
                parts.append(f'{len(keys)} {name}: {", ".join(keys[:8])}{more}')
        return '; '.join(parts)


def compare(own: Mapping, given: Mapping) -> Difference:
    """How `given` weights differ from a model's `own`; BatchNorm's step counter may be missing."""
    return Difference(
        [key for key in own if key not in given and not key.endswith('num_batches_tracked')],
        [key for key in given if key not in own],
        [f'{key} ({_shape(value)} given, {_shape(own[key])} wanted)' for key, value in given.items()
         if key in own and value.shape != own[key].shape])


def load_into(model: nn.Module, state_dict: Mapping, *, what: str,
              strict: bool = True) -> Difference:
    """Copy weights into the model; return what did not fit, or with `strict` refuse it. Weights that are not
    finite are refused.

    `what` names the weights in the message. After an error the model holds a part of them and must
    not be used.
    """
    refuse_not_finite(state_dict, what)
    own = model.state_dict()
    misshaped = compare(own, state_dict).misshaped
    fitting = OrderedDict((key, value) for key, value in state_dict.items()
                          if key not in own or value.shape == own[key].shape)
    if hasattr(state_dict, '_metadata'):
        fitting._metadata = state_dict._metadata
    missing, unexpected = model.load_state_dict(fitting, strict=False)
    # asking torch after the copy, not before, lets modules convert the keys of their own earlier
    # versions
    missing = [key for key in missing
               if key not in state_dict and not key.endswith('num_batches_tracked')]
    difference = Difference(missing, list(unexpected), misshaped)
    if strict and difference:
        raise UserError(f'{what} does not fit the model: {difference}. Give the checkpoint of this '
                        'very config, or the config this checkpoint was trained with')
    return difference


def _shape(tensor: torch.Tensor) -> str:
    return 'x'.join(map(str, tensor.shape)) or 'scalar'
