"""Where the project's own files are."""
from __future__ import annotations

import difflib
from pathlib import Path

from hgd_det.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def find_config(path: str | Path) -> Path:
    """A config given from the working folder or from the project's root."""
    path = Path(path)
    for base in (Path(), ROOT):
        if (base / path).is_file():
            return base / path
    known = sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'configs').rglob('*.py'))
    near = difflib.get_close_matches(str(path), known, n=3, cutoff=0.5)
    raise UserError(f'config {str(path)!r} does not exist here or in {ROOT}'
                    + (f'; near names: {", ".join(near)}' if near else ''))
