"""The report: one HTML file with everything in it, for a phone, a desk and paper."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from hgd_det.checkpoint import atomic_write
from hgd_det.compat import versions
from hgd_det.errors import UserError
from hgd_det.outputs import keep_originals
from hgd_det.report import sections, seen
from hgd_det.report.cast import Member, cast
from hgd_det.report.evidence import Evidence, gather
from hgd_det.report.html import Section
from hgd_det.report.runs import NoTraining, runs_in
from hgd_det.report.style import STYLE


def write_report(folders: Sequence[str | Path], out: str | Path, *, images: int = 4, models: bool = True,
                 score: float = 0.3, bench: str | Path | None = None, title: str = 'Distillation report',
                 force: bool = False,
                 say: Callable[[str], object] = lambda text: None) -> Path:
    """Write the report of some runs.

    Args:
        folders: Work directories, of teacher and students; who is who follows from their configs.
        images: In the panels.
        models: Open the checkpoints; without, the report holds what the logs say.
        score: Boxes that score less count neither in panels nor in errors.
        bench: JSON of `hgd-det bench` to take latencies from, instead of timing.
        force: Write over a page that exists.
        say: Is told what happens.
    """
    keep_originals([out], [bench] if bench else [], force=force)
    runs, refused = [], []
    for folder in folders:
        try:
            runs += runs_in(folder)
        except NoTraining as error:
            refused.append(error)
            say(f'left out: {error}')
    if refused and not runs:
        raise refused[0]
    _check(runs)
    members = cast(runs)
    evidence = gather(members, images=images, score=score, bench=bench, say=say) if models else Evidence(
        missing=['panels, errors, latency, costs and who imitates whom: the models were not opened'])
    atomic_write(page(title, members, *build(members, evidence, score)), out)
    return Path(out)


def _check(runs: Sequence) -> None:
    if not runs:
        raise UserError('no run given; give the work directories of runs')
    folders = [run.folder.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        raise UserError('a run is given twice')
    names = [run.name for run in runs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f'two runs are called {twice[0]!r}; the report tells runs apart by the names of '
                        'their folders: rename one')


def build(members: Sequence[Member], evidence: Evidence, score: float) -> tuple[list[Section], list[str]]:
    """The sections there is something to say in, and what is missing."""
    missing = list(evidence.missing)
    opened = bool(evidence.detectors)
    found = [
        sections.result(members, evidence),
        seen.views(members, evidence),
        sections.classes(members, missing),
        seen.mistakes(members, evidence, score),
        sections.training(members, missing),
        sections.stages(members, missing),
        sections.correspondence(members, evidence.pairs, missing) if opened else None,
        seen.speed(members, evidence, missing) if opened else None,
        sections.settings(members)]
    return [each for each in found if each is not None], missing


def page(title: str, members: Sequence[Member], found: Sequence[Section], missing: Sequence[str]) -> str:
    links = ''.join(f'<li><a href="#{each.place}">{escape(each.title)}</a></li>' for each in found)
    body = ''.join(f'<section id="{each.place}"><h2>{escape(each.title)}</h2>{each.body}</section>'
                   for each in found)
    lacking = '' if not missing else (
        '<section id="missing"><h2>Not in this report</h2><ul class="missing">'
        + ''.join(f'<li>{escape(each[0].upper() + each[1:])}.</li>' for each in missing) + '</ul></section>')
    by = ', '.join(f'{key} {value}' for key, value in versions().items() if value)
    headline = sections.headline(members)
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<meta name="description" content="{escape(headline)}">'
            f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style></head>\n'
            f'<body><header><p class="kind">{escape(title)}</p><h1>{escape(headline)}</h1>'
            f'{sections.overview(members)}<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
            f'<main>{body}{lacking}</main>\n'
            f'<footer><p>Written by hgd_det. Versions where it was written: {escape(by)}.</p></footer>'
            '\n</body></html>\n')
