"""The classes of a teacher that learned others: whose scores are whose.

A map ``{'mine': 'theirs'}`` says which class of the teacher is which of the student's; several of theirs may
be one of mine. Shapes: K_T numbers per anchor in the teacher's scores, K in the student's.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmdet.registry import DATASETS
from torch import Tensor

from hgd_det.errors import UserError, near
from hgd_det.weights import class_names


def groups(mapping: Mapping, mine: Sequence[str], theirs: Sequence[str], owner: str) -> list[list[int]]:
    """Of each of my classes, the numbers of theirs that it is."""
    found: dict[str, list[int]] = {}
    taken: dict[str, str] = {}
    for name, given in mapping.items():
        if name not in mine:
            raise UserError(f'{owner}: classes has {name!r}, but the student has no such class'
                            + _near(name, mine))
        for other in [given] if isinstance(given, str) else given:
            if other not in theirs:
                raise UserError(f'{owner}: classes has {name!r}: {given!r}, but the teacher has no class '
                                f'{other!r}' + _near(other, theirs))
            if other in taken:
                raise UserError(f'{owner}: classes takes {other!r} of the teacher for {taken[other]!r} and '
                                f'for {name!r}; it cannot tell them apart, so give it to one')
            taken[other] = name
            found.setdefault(name, []).append(list(theirs).index(other))
    if lacking := [name for name in mine if name not in found]:
        raise UserError(f'{owner}: classes says of no class of the teacher that it is '
                        f'{", ".join(map(repr, lacking))}, but a term reads its class scores; name one for '
                        'each class of the student, or choose terms that compare features')
    return [found[name] for name in mine]


def check_map(mapping) -> None:
    """Refuse what is no map of names."""
    def named(value) -> bool:
        return isinstance(value, str) or (isinstance(value, (list, tuple)) and bool(value)
                                          and all(isinstance(one, str) for one in value))

    if not isinstance(mapping, Mapping) or not mapping or not all(
            isinstance(name, str) and named(value) for name, value in mapping.items()):
        raise UserError(f"classes={mapping!r}; write {{'mine': 'theirs', ...}}, where a list of "
                        'theirs may be one of mine; or leave it out where both have the same list')


class Regrouped:
    """(..., K_T) class logits of a teacher as (..., K): the student's classes, in its order.

    Softmax: probabilities add up, and those of all classes that nobody asks for are background's, the last::

        z'_k = log sum_{j in g_k} exp z_j,    z'_bg = log sum_{j in no g_k} exp z_j

    Sigmoid: ``z'_k = max_{j in g_k} z_j``.

    Args:
        wanted: Of each class of the student, the numbers g_k of the teacher's.
        columns: K_T.
    """

    def __init__(self, wanted: Sequence[Sequence[int]], columns: int, sigmoid: bool):
        self.sigmoid, self.most = sigmoid, max(map(len, wanted))
        asked = {column for group in wanted for column in group}
        # a group that is shorter gives its first again, which is then left out
        self._columns = torch.tensor([[*group, *[group[0]] * (self.most - len(group))] for group in wanted])
        self._left_out = torch.tensor([[i >= len(group) for i in range(self.most)] for group in wanted])
        self._others = torch.tensor([column for column in range(columns) if column not in asked])
        self._device = self._columns.device

    def __call__(self, cls: Tensor) -> Tensor:
        if cls.device != self._device:    # once
            self._device = cls.device
            self._columns, self._left_out, self._others = (
                x.to(cls.device) for x in (self._columns, self._left_out, self._others))
        if cls.dtype in (torch.float16, torch.bfloat16):
            cls = cls.float()
        mine = cls.index_select(-1, self._columns.flatten()).unflatten(-1, self._columns.shape)
        if self.most == 1:
            mine = mine[..., 0]
        else:
            mine = mine.masked_fill(self._left_out, -torch.inf)
            mine = mine.amax(-1) if self.sigmoid else mine.logsumexp(-1)
        if self.sigmoid:
            return mine
        return torch.cat([mine, cls.index_select(-1, self._others).logsumexp(-1, keepdim=True)], -1)


def names_in(config: Mapping) -> tuple[str, ...] | None:
    """The classes of a config's data set, where it names them."""
    for part in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = (config.get(part) or {}).get('dataset')
        while isinstance(dataset, Mapping):
            kind = dataset.get('type')
            own = getattr(DATASETS.get(kind), 'METAINFO', None) if isinstance(kind, str) else None
            for metainfo in (dataset.get('metainfo'), own):
                if names := class_names(dict(meta=dict(dataset_meta=metainfo))):
                    return names
            dataset = dataset.get('dataset') or next(iter(dataset.get('datasets') or ()), None)
    return None


def _near(name: str, known: Sequence[str]) -> str:
    meant = near(name, known)
    return f'; near names: {", ".join(meant)}' if meant else f'; it has {", ".join(known)}'
