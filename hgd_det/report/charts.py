"""Charts as inline SVG, written by hand: they scale, print, follow the page's colours and need no library.

A chart is 360 units wide, the width of a phone, so that its text is readable there. A series has its
number as its colour (`.s0`, `.s1`, ... of the page's style sheet, told apart with any colour vision) and,
where that is not enough, a dash and its name written beside it.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 360


@dataclass(frozen=True)
class Series:
    """A line: its name, its points (x, y), the number of its colour, and whether it is dashed."""
    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    dashed: bool = False


def lines(title: str, text: str, series: Sequence[Series], *, log: bool = False, percent: bool = False,
          colours: str = 's') -> str:
    """Lines over iterations, each with its name at its right end. `text` says in words what they show."""
    series = [each for each in series if each.points]
    top, bottom, left, right = 10, 192, 34, WIDTH - 78
    ys = [y for each in series for _, y in each.points if not log or y > 0]
    xs = [x for each in series for x, _ in each.points]
    low, high = (min(ys), max(ys)) if log else (min(0, *ys), max(ys))
    marks = decades(low, high) if log else ticks(low, max(high, low + 1e-6))
    if log:
        low, marks = marks[0], [mark for mark in marks if mark <= high]
    else:
        low, high = marks[0], marks[-1]
    x_at = scale(0, max(xs), left, right)
    y_at = scale(math.log(low), math.log(high), bottom, top) if log else scale(low, high, bottom, top)
    height = (lambda y: y_at(math.log(max(y, low)))) if log else y_at
    parts = [_grid(height, marks, left, right, percent)]
    for x in (x for x in ticks(0, max(xs), 4) if x <= max(xs)):
        parts.append(_text(x_at(x), bottom + 15, f'{x:g}', 'middle'))
    parts.append(_text((left + right) / 2, bottom + 30, 'iteration', 'middle', 'axis'))
    names = apart([height(each.points[-1][1]) for each in series], 12)
    for each, y in zip(series, names, strict=True):
        path = ' '.join(f'{x_at(x):.1f},{height(v):.1f}' for x, v in each.points)
        end_x, end_y = x_at(each.points[-1][0]), height(each.points[-1][1])
        dash = ' stroke-dasharray="5 3"' if each.dashed else ''
        parts.append(
            f'<g class="{colours}{each.colour}"><polyline points="{path}" fill="none" stroke="currentColor" '
            f'stroke-width="2" stroke-linejoin="round"{dash}/>'
            f'<circle cx="{end_x:.1f}" cy="{end_y:.1f}" r="2.5" fill="currentColor"/>'
            f'<path d="M{end_x + 3:.1f} {end_y:.1f}L{right + 8:.1f} {y:.1f}" stroke="currentColor" '
            f'stroke-width=".7" opacity=".6" fill="none"/>'
            f'{_text(right + 10, y + 4, short(each.name), "start", "name")}</g>')
    return svg(title, text, bottom + 36, parts)


def bars(title: str, text: str, groups: Sequence[str],
         series: Sequence[tuple[str, int, Sequence[float | None]]]) -> str:
    """Horizontal bars in percent, 0 to 100: a group per class, in it a bar per series (name, colour, values
    from 0 to 1)."""
    thick = 8 if len(groups) <= 24 else 4
    step = len(series) * (thick + 1) + 9
    left, right, top = 70, WIDTH - 36, 6
    x_at = scale(0, 1, left, right)
    bottom = top + step * len(groups)
    parts = [f'<path class="grid" d="M{x_at(t):.1f} {top}V{bottom - 4}"/>' for t in (0, .25, .5, .75, 1)]
    parts += [_text(x_at(t), bottom + 10, f'{100 * t:.0f}', 'middle') for t in (0, .25, .5, .75, 1)]
    for row, group in enumerate(groups):
        y = top + row * step
        parts.append(_text(left - 6, y + (step - 9) / 2 + 4, short(group, 12), 'end', 'name'))
        for i, (name, colour, values) in enumerate(series):
            value = values[row]
            if value is None:
                continue
            at = y + i * (thick + 1)
            label = (_text(x_at(value) + 4, at + thick - .5, f'{100 * value:.0f}', 'start', 'tiny')
                     if thick > 6 else '')
            parts.append(f'<g class="s{colour}"><rect x="{left}" y="{at:.1f}" '
                         f'width="{x_at(value) - left:.1f}" height="{thick}" rx="1.5" fill="currentColor">'
                         f'<title>{escape(group)}, {escape(name)}: {100 * value:.1f}</title></rect>'
                         f'{label}</g>')
    return svg(title, text, bottom + 16, parts)


def dots(title: str, text: str, rows: Sequence[tuple[str, int, float]], low: float | None = None,
         high: float | None = None) -> str:
    """A row per run with its mAP (name, colour, value from 0 to 1); between `low` and `high`, the student
    alone and the teacher, the gap is shaded."""
    left, right, top, step = 104, WIDTH - 46, 14, 26
    values = [value for _, _, value in rows]
    marks = ticks(max(0, min(values) - .1), min(1, max(values) + .03), 4)
    x_at = scale(min(marks[0], min(values)), max(marks[-1], max(values)), left, right)
    bottom = top + step * len(rows)
    parts = [f'<path class="grid" d="M{x_at(t):.1f} {top - 6}V{bottom - 4}"/>'
             + _text(x_at(t), bottom + 11, f'{100 * t:g}', 'middle') for t in marks]
    if low is not None and high is not None and high > low:
        parts.insert(0, f'<rect class="gap" x="{x_at(low):.1f}" y="{top - 6}" '
                        f'width="{x_at(high) - x_at(low):.1f}" height="{bottom - top + 2}"/>')
    for i, (name, colour, value) in enumerate(rows):
        y = top + i * step + 8
        start = x_at(low) if low is not None else left
        parts.append(f'<g class="s{colour}">{_text(left - 10, y + 4, short(name, 14), "end", "name")}'
                     f'<path d="M{start:.1f} {y}H{x_at(value):.1f}" stroke="currentColor" stroke-width="3"/>'
                     f'<circle cx="{x_at(value):.1f}" cy="{y}" r="6" fill="currentColor"/>'
                     f'{_text(WIDTH - 2, y + 4, f"{100 * value:.1f}", "end", "value")}</g>')
    return svg(title, text, bottom + 16, parts)


def stacked(title: str, text: str, rows: Sequence[tuple[str, Sequence[tuple[str, int, float]]]],
            unit: float | None = None) -> str:
    """A bar per row, of parts (kind, colour, number); `unit` is the number that fills the width."""
    left, right, top, step = 84, WIDTH - 2, 4, 30
    widest = unit or max((sum(number for _, _, number in parts) for _, parts in rows), default=1) or 1
    x_at = scale(0, widest, left, right)
    shown = []
    for i, (name, parts) in enumerate(rows):
        y, begin = top + i * step, 0.0
        shown.append(_text(left - 8, y + 15, short(name, 12), 'end', 'name'))
        for kind, colour, number in parts:
            if not number:
                continue
            x, width = x_at(begin), x_at(begin + number) - x_at(begin)
            label = (f'<text class="inside" x="{x + width / 2:.1f}" y="{y + 15}" text-anchor="middle">'
                     f'{number:g}</text>' if width > 8 + 6 * len(f'{number:g}') else '')
            shown.append(f'<g class="k{colour}"><rect x="{x:.1f}" y="{y}" width="{max(0, width - 1):.1f}" '
                         f'height="22" fill="currentColor"><title>{escape(name)}: {number:g} {escape(kind)}'
                         f'</title></rect>{label}</g>')
            begin += number
    return svg(title, text, top + step * len(rows), shown)


def scatter(title: str, text: str, points: Sequence[tuple[str, int, float, float]]) -> str:
    """Latency in milliseconds against mAP: (name, colour, ms, mAP from 0 to 1)."""
    top, bottom, left, right = 16, 192, 34, WIDTH - 20
    marks = ticks(0, 1.1 * max(ms for _, _, ms, _ in points), 4)
    values = [value for *_, value in points]
    heights = ticks(max(0, min(values) - .1), min(1, max(values) + .05))
    x_at, y_at = scale(0, marks[-1], left, right), scale(heights[0], heights[-1], bottom, top)
    parts = [_grid(y_at, heights, left, right, True)]
    parts += [_text(x_at(t), bottom + 15, f'{t:g}', 'middle') for t in marks]
    parts.append(_text((left + right) / 2, bottom + 30, 'milliseconds for an image', 'middle', 'axis'))
    order = sorted(range(len(points)), key=lambda i: points[i][3])
    names = dict(zip(order, apart([y_at(points[i][3]) for i in order], 12), strict=True))
    for i, (name, colour, ms, value) in enumerate(points):
        x, anchor, shift = x_at(ms), 'start', 11
        if x > (left + right) / 2:
            anchor, shift = 'end', -11
        parts.append(f'<g class="s{colour}"><circle cx="{x:.1f}" cy="{y_at(value):.1f}" r="6" '
                     f'fill="currentColor"/>{_text(x + shift, names[i] + 4, short(name, 18), anchor, "name")}'
                     '</g>')
    return svg(title, text, bottom + 36, parts)


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Names beside their colours: (CSS class, name)."""
    return '<ul class="legend">' + ''.join(
        f'<li><span class="{css}" aria-hidden="true">&#9632;</span> {escape(name)}</li>'
        for css, name in entries) + '</ul>'


# ------------------------------------------------------------------------------------------ pieces
def svg(title: str, text: str, height: float, parts: Sequence[str]) -> str:
    return (f'<svg role="img" viewBox="0 0 {WIDTH} {height:g}" xmlns="http://www.w3.org/2000/svg">'
            f'<title>{escape(title)}</title><desc>{escape(text)}</desc>{"".join(parts)}</svg>')


def _text(x: float, y: float, text: str, anchor: str, css: str = 'tick') -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _grid(y_at: Callable[[float], float], marks: Sequence[float], left: float, right: float,
          percent: bool) -> str:
    return ''.join(f'<path class="grid" d="M{left} {y_at(t):.1f}H{right}"/>'
                   + _text(left - 5, y_at(t) + 4, f'{100 * t:g}' if percent else f'{t:g}', 'end')
                   for t in marks)


def scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    """A linear map of low..high to start..stop."""
    factor = (stop - start) / ((high - low) or 1)
    return lambda value: start + (value - low) * factor


def ticks(low: float, high: float, number: int = 5) -> list[float]:
    """Round values around low..high, about so many; the first lies at or below, the last at or above."""
    raw = (high - low) / number or 1
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if raw <= factor * power * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from at or below `low` to at or above `high`; of three decades or more
    the powers alone."""
    factors = (1,) if high / low > 1000 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [round(factor * 10.0 ** power, 12) for power in powers for factor in factors]
    first = max((i for i, mark in enumerate(marks) if mark <= low), default=0)
    last = next((i for i, mark in enumerate(marks) if mark >= high), len(marks) - 1)
    return marks[first:last + 1]


def apart(places: Sequence[float], gap: float) -> list[float]:
    """The places moved so that none lie nearer than `gap`, and their middle stays."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    for before, after in zip(order, order[1:], strict=False):
        moved[after] = max(moved[after], moved[before] + gap)
    shift = sum(m - p for m, p in zip(moved, places, strict=True)) / max(1, len(places))
    return [place - shift for place in moved]


def short(name: str, length: int = 13) -> str:
    """With its middle left out where it is longer."""
    end = length // 2
    return name if len(name) <= length else f'{name[:length - 1 - end]}…{name[-end:]}'
