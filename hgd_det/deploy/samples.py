"""Images that stand for those a model will see: to calibrate with, to time on."""
from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from hgd_det.deploy.pictures import Unreadable, read
from hgd_det.deploy.sources import Source, collect
from hgd_det.errors import UserError
from hgd_det.training.runner import warn


def samples(inputs: Sequence[str | Path], limit: int) -> Iterator[np.ndarray]:
    """RGB images from files and folders, at most `limit`, spread evenly over their sorted names.

    What cannot be read is left out with a warning.
    """
    if limit < 1:
        raise UserError(f'a limit of {limit} images: give 1 or more')
    return _read(inputs, collect(inputs, os.devnull), limit)    # nothing is written


def _read(inputs: Sequence[str | Path], sources: Sequence[Source], limit: int) -> Iterator[np.ndarray]:
    found = 0
    for index in np.linspace(0, len(sources) - 1, min(limit, len(sources))).round().astype(int):
        try:
            image = read(sources[index].path)
        except Unreadable as error:
            warn(f'{sources[index].path} is left out: {error}')
            continue
        found += 1
        yield image
    if not found:
        raise UserError(f'{" ".join(map(str, inputs))}: none of the images can be read')
