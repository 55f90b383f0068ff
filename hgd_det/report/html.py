"""Pieces of the page: tables, figures, embedded pictures."""
from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from hgd_det.report.cast import Member


@dataclass(frozen=True)
class Section:
    """A part of the page; `place` is what a link to it is called."""
    place: str
    title: str
    body: str


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, *, css: str = '',
          best: int | None = None) -> str:
    """Cells are HTML; the first of a row is its header. The row `best` stands out."""
    columns = ''.join(f'<th scope="col">{cell}</th>' for cell in head)
    body = ''.join(
        f'<tr{" class=best" if number == best else ""}><th scope="row">{first}</th>'
        + ''.join(f'<td>{cell}</td>' for cell in rest) + '</tr>'
        for number, (first, *rest) in enumerate(rows))
    columns = f'<thead><tr>{columns}</tr></thead>'
    return (f'<div class="scroll"><table class="{css}" style="--n:{len(head) - 1}">'
            f'<caption>{caption}</caption>{columns}<tbody>{body}</tbody></table></div>')


def figure(content: str, caption: str) -> str:
    """A chart or picture with what a reader should see in it; the caption is HTML."""
    return f'<figure>{content}<figcaption>{caption}</figcaption></figure>'


def picture(data: bytes, kind: str, alt: str, css: str = '', shape: tuple[int, int] | None = None) -> str:
    """An image inside the page; `shape` (height, width) is that at which it is shown."""
    ratio = f' style="aspect-ratio:{shape[1]}/{shape[0]}"' if shape else ''
    return (f'<img class="{css}"{ratio} alt="{escape(alt)}" '
            f'src="data:image/{kind};base64,{base64.b64encode(data).decode()}">')


def named(member: Member) -> str:
    """A run's name in its colour, with its role beneath."""
    role = dict(teacher='teacher', alone='trained alone',
                distilled=f'distilled: {member.method}')[member.role]
    return (f'<span class="dot s{member.colour}" aria-hidden="true"></span>{escape(member.name)}'
            f'<small>{escape(role)}</small>')


def percent(value: float | None, sign: bool = False) -> str:
    """In percent, with one digit; a dash for what is not known."""
    if value is None:
        return '–'
    return f'{100 * value:+.1f}'.replace('-', '−') if sign else f'{100 * value:.1f}'


def figures(value: float) -> str:
    return f'{value:.3f}' if value < 1 else f'{value:.2f}' if value < 100 else f'{value:,.0f}'


def count(number: int, word: str) -> str:
    plural = 'es' if word.endswith('x') else 's'
    return f'{number:,} {word}{"" if number == 1 else plural}'
