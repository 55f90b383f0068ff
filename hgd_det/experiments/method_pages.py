"""The tables of the documentation that come from the registry, the configs and `results/`.

Each stands between two comments: ``<!-- methods -->``, or ``<!-- options of NAME -->``, and ``<!-- end -->``.
"""
from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from hgd_det.checkpoint import atomic_write
from hgd_det.distill.registry import build_term, split_entry
from hgd_det.errors import UserError
from hgd_det.experiments.comparison import measured
from hgd_det.experiments.methods import describe, pick, sentence
from hgd_det.experiments.results import FOLDER, read
from hgd_det.experiments.tables import table
from hgd_det.paths import find_method, read_config

MARKED = re.compile(r'(<!-- (methods|options of (\w+)) -->\n).*?(<!-- end -->)', re.S)
WHEN = '**When to use it.**'
SCALE = 'shapes'        # whose results the gains are
GROUPS = ('features', 'outputs', 'who teaches', 'several terms')
HEAD = ('term', 'what it does', 'when to use it', 'needs', 'gain', 'time', 'memory')


def write(paths: Sequence[Path]) -> list[Path]:
    """Fill the tables in these files; those that changed."""
    changed, terms = [], describe()
    for path in paths:
        if not path.is_file():
            raise UserError(f'{path} is no file; give the pages whose tables are to be filled in')
        text = path.read_text(encoding='utf-8')
        new = fill(text, terms, path)
        if new != text:
            atomic_write(new, path)
            changed.append(path)
    return changed


def fill(text: str, terms: list[dict], path: Path) -> str:
    """A page with its tables as they are to be. `path` says where it lies: pages of methods are beside it."""
    def made(found: re.Match) -> str:
        lines = _options(pick(terms, found[3])) if found[3] else _methods(terms, path.parent / 'methods')
        return '\n'.join((found[1].rstrip('\n'), *lines, found[4]))
    return MARKED.sub(made, text)


def tables_of(text: str) -> list[str]:
    """Which tables a page has a place for: `methods`, `options of NST`."""
    return [found[2] for found in MARKED.finditer(text)]


def page_of(term: dict) -> str:
    """The page of a term has the name of its own file, or else of the smallest method that has it."""
    return term['methods'][0]


def _row(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cell.replace("|", chr(92) + "|") for cell in cells)} |'


def _options(term: dict) -> list[str]:
    return [_row(('option', 'default', 'type')), '|---|---|---|',
            *(_row((f'`{option["name"]}`', _code(option['default']), option['type']))
              for option in term['options'])]


def _code(value) -> str:
    return f'`{value}`' if isinstance(value, str) else str(value)


def _methods(terms: list[dict], pages: Path) -> list[str]:
    """A row for each method that has been measured, in groups, the largest gain first."""
    known = {term['name']: term for term in terms}
    costs = {row['method']: row for row in csv.DictReader((FOLDER / 'cost.csv').open(encoding='utf-8'))}
    groups: dict[str, list] = {group: [] for group in GROUPS}
    for method, gain in gains().items():
        cells = _cells(method, known, pages)
        cost = costs.get(method)
        spent = [f'{float(cost[key]):.2f}' if cost else '' for key in ('step_ratio', 'memory_ratio')]
        groups[_group(method, known)].append((-gain, _row((*cells, f'{gain:+.1f}', *spent))))
    rows = [_row(HEAD), '|' + '---|' * len(HEAD)]
    for group, found in groups.items():
        rows += [_row((f'**{group}**', *[''] * (len(HEAD) - 1))), *(row for _, row in sorted(found))]
    return rows


def gains() -> dict[str, float]:
    """Of each measured method, what its mean over the seeds is above that of the student alone."""
    every, rows = table('methods', SCALE), read(FOLDER / f'{SCALE}.csv')
    alone = {line.config: measured(every, line, 'mAP', rows) for line in every.lines if not line.method}
    found = {line.method: (measured(every, line, 'mAP', rows), alone[line.alone])
             for line in every.lines if line.method}
    return {method: own.mean - base.mean for method, (own, base) in found.items() if own and base}


def _kinds(method: str) -> list[str]:
    return list(dict.fromkeys(term.type for term in read_config(find_method(method)).terms.values()))


def _group(method: str, known: dict[str, dict]) -> str:
    kinds = _kinds(method)
    if len(kinds) > 1:
        return 'several terms'
    if 'teacher' in read_config(find_method(method)):   # none, or one like the student
        return 'who teaches'
    return 'outputs' if known[kinds[0]]['anchors_alike'] else 'features'


def _cells(method: str, known: dict[str, dict], pages: Path) -> tuple[str, str, str, str]:
    terms = [known[kind] for kind in _kinds(method)]
    own = len(terms) == 1 and page_of(terms[0]) == method
    link = f'[`{terms[0]["name"] if own else method}`](methods/{method}.md)'
    if own:
        label, does = link, terms[0]['summary']
    else:
        label, does = f'{link}: {", ".join(term["name"] for term in terms)}', _comment(method)
    return label, does, _when(pages / f'{method}.md'), _needs(method, terms)


def _needs(method: str, terms: list[dict]) -> str:
    config = read_config(find_method(method))
    entries = [split_entry(name, term) for name, term in config.terms.items()]
    words = {need for name, (own, _) in zip(config.terms, entries, strict=True)
             for need in build_term(name, dict(own)).needs}      # with the method's options
    words |= {'same anchors'} if any(term['anchors_alike'] for term in terms) else set()
    teacher = any(term['needs_teacher'] for term in terms) and config.get('teacher', '') != 'student'
    return ', '.join([*sorted(words), *([] if teacher else ['no teacher'])])


def _comment(method: str) -> str:
    """The first sentence of the head of its file."""
    text = find_method(method).read_text(encoding='utf-8')
    head = re.match(r'((?:#.*\n)+)', text)[1].replace('#\n', '\n')
    return sentence('\n'.join(line.removeprefix('# ') for line in head.splitlines()))


def _when(page: Path) -> str:
    """The first sentence of the page that says when to use it, as it is on that page."""
    if not page.is_file():
        raise UserError(f'{page} is missing: every method has a page')
    _, found, rest = page.read_text(encoding='utf-8').partition(WHEN)
    if not found:
        raise UserError(f'{page} does not say {WHEN!r}')
    return re.sub(r'\]\((?!https?:)([^)]+)\)', r'](methods/\1)', sentence(rest))
