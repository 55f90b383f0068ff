"""A table of ours beside the paper's, as text: means over seeds with their spread, gains, and where the order
of the lines is another one."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from hgd_det.deploy.tables import plain
from hgd_det.experiments.results import Key, mean_and_spread, read_classes
from hgd_det.experiments.tables import SCALES, Line, Table

Rows = Mapping[Key, Mapping[str, str]]


@dataclass(frozen=True)
class Measured:
    """What the seeds of one line came to in one metric, in percent."""
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean_and_spread(self.values)[0]

    @property
    def spread(self) -> float | None:
        return mean_and_spread(self.values)[1]

    def __str__(self) -> str:
        spread = '' if self.spread is None else f' ± {self.spread:.1f}'
        return f'{self.mean:.1f}{spread} ({len(self.values)})'


def options_of(line: Line, extra: str = '') -> str:
    """The options of its rows; those given for all lines come last."""
    return ' '.join(filter(None, (line.options, extra)))


def rows_of(line: Line, rows: Rows, extra: str = '') -> list[Mapping[str, str]]:
    return [row for key, row in sorted(rows.items())
            if key[:3] == (line.config, line.method, options_of(line, extra))]


def measured(table: Table, line: Line, metric: str, rows: Rows, extra: str = '') -> Measured | None:
    """Of the rows that tell this metric; AP50, AP75 and the classes stand in the last column."""
    column = SCALES[table.scale].metric
    found = [float(row[column]) if metric == 'mAP' else read_classes(row['per_class']).get(metric)
             for row in rows_of(line, rows, extra) if metric != 'mAP' or row[column]]
    values = tuple(100 * value for value in found if value is not None)
    return Measured(values) if values else None


def show(table: Table, rows: Rows, extra: str = '', costs: Mapping[str, Sequence[str]] | None = None) -> str:
    """All of it. `costs` are ours, by label, for a table that shows them."""
    used = [row for line in table.lines for row in rows_of(line, rows, extra)]
    lengths = sorted({int(row['iterations']) for row in used})
    name = f'Table {table.name}: {table.title}' if table.name.isdigit() else table.title.capitalize()
    head = f'{name}. Ours: {SCALES[table.scale].measure}, mean ± spread (seeds)' \
        + (f', {" or ".join(map(str, lengths))} iterations' if lengths else '') \
        + (f', with {extra}' if extra else '') \
        + f'. Paper: {"COCO" if table.scale == "coco" else "VOC 2007"}, SSD300.'
    parts = [head, plain(_lines(table, rows, extra), left=('',))]
    if table.costs:
        parts.append(plain(_costs(table, costs or {}), left=('',)))
    if table.classes and used:
        parts.append(_by_class(table, rows, extra))
    parts += [text for text in (order(table, rows, extra), _commits(used), table.note) if text]
    return '\n\n'.join(parts)


def _lines(table: Table, rows: Rows, extra: str) -> list[list[str]]:
    names = ['AP' if metric == 'mAP' and table.scale == 'coco' else metric for metric in table.metrics]
    cells = [['', *(f'paper {name}' for name in names), 'gain', *(f'our {name}' for name in names), 'gain']]
    by_config = {line.config: line for line in table.lines if not line.options and not line.method}
    for line in table.lines:
        plain_line, last = by_config.get(line.alone), table.metrics[-1]
        ours = [measured(table, line, metric, rows, extra) for metric in table.metrics]
        base = plain_line and measured(table, plain_line, last, rows, extra)
        told = line.paper.get(last), plain_line and plain_line.paper.get(last)
        cells.append([line.label, *(_number(line.paper.get(metric)) for metric in table.metrics),
                      _gain(*told), *('' if each is None else str(each) for each in ours),
                      _gain(ours[-1] and ours[-1].mean, base and base.mean)])
    return cells


def _number(value: float | None) -> str:
    return '' if value is None else f'{value:.1f}'


def _gain(value: float | None, base: float | None) -> str:
    return '' if value is None or base is None else f'{value - base:+.1f}'


def _costs(table: Table, ours: Mapping[str, Sequence[str]]) -> list[list[str]]:
    cells = [['', 'paper params', 'MACs', 'FPS', 'our params', 'MACs', 'FPS']]
    for label, (params, macs, fps) in table.costs.items():
        cells.append([label, f'{params:g} M', f'{macs:g} G', f'{fps:g}', *ours.get(label, ('', '', ''))])
    return cells


def _by_class(table: Table, rows: Rows, extra: str) -> str:
    """One line per class; the paper's number stands behind ours in brackets."""
    lines = [line for line in table.lines if rows_of(line, rows, extra)]
    names = dict.fromkeys(name for line in lines for row in rows_of(line, rows, extra)
                          for name in read_classes(row['per_class']))
    cells = [['AP by class', *(line.label for line in lines)]]
    for name in names:
        cells.append([name])
        for line in lines:
            ours = measured(table, line, name, rows, extra)
            paper = table.paper_classes.get(line.label, {}).get(name)
            cells[-1].append(_number(ours and ours.mean) + (f' ({paper:.1f})' if paper else ''))
    return plain(cells, left=('AP by class',))


@dataclass(frozen=True)
class Disagreement:
    """Two lines that stand the other way round than in the paper."""
    better: str    # in the paper
    worse: str
    paper: str
    ours: tuple[Measured, Measured]

    @property
    def clear(self) -> bool:
        """By more than the spread of their difference; one seed has no spread to tell by."""
        (high, low) = self.ours
        if high.spread is None and low.spread is None:
            return False
        return low.mean - high.mean > ((high.spread or 0) ** 2 + (low.spread or 0) ** 2) ** 0.5

    def __str__(self) -> str:
        return f'{self.worse} {self.ours[1]} is above {self.better} {self.ours[0]}; {self.paper}'


def compare(table: Table, rows: Rows, extra: str = '') -> tuple[list[Disagreement], int]:
    """The pairs of lines in another order than the paper's, and how many pairs there are to compare."""
    metric = table.metrics[-1]
    ours = {line.label: measured(table, line, metric, rows, extra) for line in table.lines}
    paper = {line.label: line.paper[metric] for line in table.lines if metric in line.paper}
    pairs = {(high, low): f'paper {paper[high]:.1f} against {paper[low]:.1f}'
             for high, low in permutations(paper, 2) if paper[high] > paper[low]}
    pairs |= {pair: 'the paper states it the other way round' for pair in table.above}
    pairs = {pair: text for pair, text in pairs.items() if None not in (ours[pair[0]], ours[pair[1]])}
    wrong = [Disagreement(high, low, text, (ours[high], ours[low])) for (high, low), text in pairs.items()
             if ours[high].mean < ours[low].mean]
    return sorted(wrong, key=lambda each: each.ours[0].mean - each.ours[1].mean), len(pairs)


def order(table: Table, rows: Rows, extra: str = '') -> str:
    """Where our order is not the paper's."""
    wrong, total = compare(table, rows, extra)
    if not total:
        return 'Too few lines are measured to compare their order with the paper\'s.'
    if not wrong:
        return f'Our order is the paper\'s in each pair of lines that can be compared ({total}).'
    clear, other = [each for each in wrong if each.clear], [each for each in wrong if not each.clear]
    how = f'in {len(clear)} of them by more than the spread' if clear else \
        'each within the spread of its seeds or measured with one seed'
    lines = [f'Our order is not the paper\'s in {len(wrong)} of {total} pairs of lines, {how}:']
    lines += [f'  {each}' for each in clear or other]
    if clear and other:
        lines.append('  within the spread, or of one seed: '
                     + '; '.join(f'{each.worse} above {each.better}' for each in other))
    return '\n'.join(lines)


def _commits(used: Iterable[Mapping[str, str]]) -> str:
    counted = Counter(row['commit'] or 'unknown' for row in used)
    told = ', '.join(f'{commit} ({number} row{"s" * (number > 1)})'
                     for commit, number in counted.most_common())
    return f'The rows are of different commits: {told}.' if len(counted) > 1 else ''
