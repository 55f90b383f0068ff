"""Rows of text as a table, the first one its header."""
from __future__ import annotations

from collections.abc import Collection, Sequence


def plain(lines: Sequence[Sequence[str]], left: Collection[str]) -> str:
    """In columns; those named in `left` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    named = {i for i, name in enumerate(lines[0]) if name in left}
    return '\n'.join('  '.join(cell.ljust(width) if i in named else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
                     for line in lines)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *body = lines
    return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in [head, ['---'] * len(head), *body])
