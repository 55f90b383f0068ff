"""The sections that logs alone can fill: the result, each class, the training, the stages, the settings."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

from hgd_det.distill.stages import NAME
from hgd_det.report import charts
from hgd_det.report.cast import Gain, Member, gain, leading, terms
from hgd_det.report.charts import Series
from hgd_det.report.evidence import Evidence
from hgd_det.report.html import Section, figure, figures, named, percent, table
from hgd_det.report.runs import Run, mean_ap

SHADES = 8    # from the colour of the largest stage to that of the smallest
STAGES = dict(
    d=('Distance to the teacher',
       'How far each stage of the student is from the teacher’s, on a logarithmic axis: falling lines are '
       'stages that learn to see what the teacher sees.'),
    u=('Stage weight', 'How much each stage counts: the mean weight the method gives it.'))


def headline(members: Sequence[Member]) -> str:
    """The result in one sentence, good or bad."""
    known = [(each, gain(each, members)) for each in members]
    known = [(each, got) for each, got in known if got.points is not None]
    if not known:
        scored = [each for each in members if each.run.mAP is not None]
        if not scored:
            return 'No run was evaluated yet'
        best = max(scored, key=lambda each: each.run.mAP)
        return f'{best.name} reaches {percent(best.run.mAP)} mAP'
    best, got = max(known, key=lambda pair: pair[1].points)
    after, before = percent(best.run.mAP), percent(got.alone)
    if got.points <= 0:
        return f'{best.method} did not help: {after} mAP, where the student alone reaches {before}'
    if got.share is None:
        return f'{best.method} lifts the student from {before} to {after} mAP'
    way = (f'{got.share:.0%} of the way to its teacher' if got.share < 1 else 'past its teacher')
    return f'{best.method} lifts the student from {before} to {after} mAP, {way}'


def result(members: Sequence[Member], evidence: Evidence) -> Section:
    gains = [gain(each, members) for each in members]
    rows = [_row(each, got, evidence) for each, got in zip(members, gains, strict=True)]
    head = ('run', 'mAP', 'gain', 'share of<br>the gap', 'param-<br>eters, M', 'multiply-<br>adds, G',
            'latency,<br>ms')
    use = [i for i in range(len(head)) if i < 2 or any(row[i] != '–' for row in rows)]
    best = max((i for i, got in enumerate(gains) if got.points is not None),
               key=lambda i: gains[i].points, default=None)
    notes = ['mAP in percent, of the last evaluation of each run.']
    if best is not None:
        notes.append('Gain: points above the student of the same build trained alone, or the mean of these. '
                     'Share of the gap: the gain as a part of the distance from there to the teacher. Each '
                     'row is one run, and runs of other seeds differ: a small gain may be luck.')
    if evidence.timing:
        notes.append(f'Latency: {escape(evidence.timing)}.')
    if unfinished := [each.name for each in members if not each.run.finished]:
        notes.append(f'Not trained to the end: {escape(", ".join(unfinished))}.')
    return Section('result', 'The result', table(
        [head[i] for i in use], [[row[i] for i in use] for row in rows], ' '.join(notes), css='runs',
        best=best))


def _row(member: Member, got: Gain, evidence: Evidence) -> list[str]:
    detector, ms = evidence.detectors.get(member.name), evidence.latency.get(member.name)
    share = '–' if got.share is None or member.role != 'distilled' else f'{got.share:.0%}'.replace('-', '−')
    return [named(member), percent(member.run.mAP),
            f'<b>{percent(got.points, sign=True)}</b>' if got.points is not None else '–', share,
            figures(detector.cost.params / 1e6) if detector else '–',
            figures(detector.cost.macs / 1e9) if detector else '–', f'{ms:.1f}' if ms else '–']


def overview(members: Sequence[Member]) -> str:
    """The mAP of each run as dots on one axis; '' if none was evaluated."""
    rows = [(each.name, each.colour, each.run.mAP) for each in members if each.run.mAP is not None]
    if not rows:
        return ''
    got = next((got for each in members if (got := gain(each, members)).points is not None), None)
    low, high = (got.alone, got.teacher) if got else (None, None)
    text = ', '.join(f'{name} {percent(value)}' for name, _, value in rows)
    shade = ' The shaded part is the gap between the student alone and its teacher.' \
        if low is not None and high is not None and high > low else ''
    return figure(charts.dots('mAP of each run', f'{text}.{shade}', rows, low, high),
                  f'mAP in percent.{shade}')


def classes(members: Sequence[Member], missing: list[str]) -> Section | None:
    with_classes = [each for each in members if each.run.per_class]
    if not with_classes:
        missing.append('AP by class: no run has an evaluation that gives it')
        return None
    names = list(dict.fromkeys(name for each in with_classes for name in each.run.per_class))
    series = [(each.name, each.colour, [each.run.per_class.get(name) for name in names])
              for each in with_classes]
    head = ['class', *(f'<span class="s{each.colour}">{escape(each.name)}</span>' for each in with_classes)]
    rows = [[escape(name), *(percent(each.run.per_class.get(name)) for each in with_classes)]
            for name in names]
    text = '; '.join(f'{name}: ' + ', '.join(f'{who} {percent(values[i])}' for who, _, values in series)
                     for i, name in enumerate(names[:24]))
    return Section('classes', 'Class by class', (
        f'<p class="lead">{escape(_class_story(members))}</p>'
        f'{charts.legend([(f"s{each.colour}", each.name) for each in with_classes])}<div class="wide">'
        + figure(charts.bars('Average precision of each class', text, names, series),
                 'Average precision of each class, in percent.')
        + table(head, rows, 'The same in figures.') + '</div>'))


def _class_story(members: Sequence[Member]) -> str:
    """Which class gained most and which least from the best distillation."""
    alone, distilled = (lead.run.per_class if (lead := leading(members, role)) else {}
                        for role in ('alone', 'distilled'))
    gains = {name: distilled[name] - alone[name] for name in distilled.keys() & alone.keys()}
    if not gains:
        return 'How well each class is found.'
    ordered = sorted(gains, key=gains.get)
    rise = sum(value > 0 for value in gains.values())
    return (f'{rise} of {len(gains)} classes are found better after distillation: from {ordered[-1]} '
            f'({percent(gains[ordered[-1]], sign=True)}) to {ordered[0]} '
            f'({percent(gains[ordered[0]], sign=True)}).')


# ---------------------------------------------------------------------------------------- training
def training(members: Sequence[Member], missing: list[str]) -> Section | None:
    loss = [Series(each.name, detection_loss(each.run), each.colour, each.role == 'teacher')
            for each in members]
    loss = [each for each in loss if len(each.points) > 1]
    curve = [Series(each.name, points, each.colour, each.role == 'teacher') for each in members
             if len(points := [(row['iter'], mean_ap(row)) for row in each.run.evaluations
                               if mean_ap(row) is not None]) > 1]
    parts = []
    if curve:
        parts.append(figure(
            charts.lines('mAP during training', _ends(curve, 100), curve, percent=True),
            'mAP in percent on the validation set, at each evaluation.'))
    else:
        missing.append('curves of mAP: each run was evaluated once; train_cfg.val_interval=N makes more')
    if loss:
        parts.append(figure(
            charts.lines('Detection loss during training', _ends(loss), loss, log=True),
            'Detection loss: classification and boxes, without the terms of a distillation; logarithmic '
            f'axis. At the end: {escape(_last(loss))}.'))
    else:
        missing.append('curves of the loss: the logs hold no losses')
    if not parts:
        return None
    return Section('training', 'While it trained', f'<div class="wide">{"".join(parts)}</div>')


def detection_loss(run: Run) -> list[tuple[float, float]]:
    """(iteration, the student's own loss): all that is named `loss_*` but the terms'."""
    names = tuple(f'loss_{name}' for name in terms(run))
    points = []
    for row in run.train:
        values = [value for key, value in row.items() if key.startswith('loss_')
                  and not any(key == name or key.startswith(f'{name}_') for name in names)]
        if values and (total := sum(values)) > 0:
            points.append((row['iter'], total))
    return points


def _last(series: Sequence[Series]) -> str:
    return ', '.join(f'{each.name} {each.points[-1][1]:.3g}' for each in series)


def _ends(series: Sequence[Series], factor: float = 1) -> str:
    return '; '.join(f'{each.name}: from {factor * each.points[0][1]:.3g} to '
                     f'{factor * each.points[-1][1]:.3g}' for each in series)


# ------------------------------------------------------------------------------------------ stages
def stages(members: Sequence[Member], missing: list[str]) -> Section | None:
    parts = []
    for each in members:
        for term in terms(each.run):
            for letter, (title, caption) in STAGES.items():
                if series := stage_series(each.run, term, letter):
                    heading = f'{title}: {_whose(each, term)}'
                    chart = charts.lines(heading, _ends(series), series, log=letter == 'd', colours='t')
                    parts.append(figure(f'<h3>{escape(heading)}</h3>{chart}', caption))
    if not parts:
        if any(each.role == 'distilled' for each in members):
            missing.append('stage distances and weights: no method of these runs logs them (HGD does)')
        return None
    return Section('stages', 'Stage by stage', f'<div class="wide">{"".join(parts)}</div>')


def _whose(member: Member, term: str) -> str:
    return member.name if len(terms(member.run)) == 1 else f'{member.name}, {term}'


def stage_series(run: Run, term: str, letter: str) -> list[Series]:
    """`<term>_d_s75` and the like as one line for each stage, the largest first."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in run.train:
        for key, value in row.items():
            if match := re.fullmatch(rf'{re.escape(term)}_{letter}_({NAME})', key):
                found.setdefault(match[1][1:], []).append((row['iter'], value))
    order = sorted(found, key=lambda name: (-_area(name), name))
    return [Series(f'stage {name}', found[name], round(i * SHADES / max(1, len(order) - 1)))
            for i, name in enumerate(order)]


def _area(name: str) -> int:
    """Of a stage `75`, `19x25` or `19_0`: a height alone is that of a square, or near enough."""
    height, width = re.match(r'(\d+)(?:x(\d+))?', name).groups()
    return int(height) * int(width or height)


def correspondence(members: Sequence[Member], pairs: Mapping[str, Mapping[str, list[dict]]],
                   missing: list[str]) -> Section | None:
    parts = []
    for each in members:
        for term, listed in pairs.get(each.name, {}).items():
            parts.append(f'<h3>{escape(_whose(each, term))}</h3>' + table(
                ('stage', 'student', 'teacher', 'adapter', 'distance<br>first → last'),
                [_pair(each.run, term, pair) for pair in listed],
                'Each row: a map of the student, with its channels, and the teacher’s map that it is '
                'compared with. The adapter makes the channels fit and is thrown away after training.',
                css='words'))
    if not parts and any(each.role == 'distilled' for each in members):
        missing.append('who imitates whom: the methods of these runs compare no maps, or the models were not '
                       'opened')
    return Section('pairs', 'Who imitates whom', ''.join(parts)) if parts else None


def _pair(run: Run, term: str, pair: Mapping) -> list[str]:
    key = f'{term}_d_{pair.get("name")}'
    seen = [row[key] for row in run.train if key in row]
    sides = [f'{escape(tap).replace(".", ".<wbr>")} <small>({channels})</small>' for tap, channels in
             zip((pair['student'], pair['teacher']), pair['channels'], strict=True)]
    adapter = escape(str(pair.get('adapter') or '–').replace('->', '→'))
    return ['×'.join(map(str, pair['size'])), *sides, adapter,
            f'{seen[0]:.3f} → {seen[-1]:.3f}' if seen else '–']


# ---------------------------------------------------------------------------------------- settings
def settings(members: Sequence[Member]) -> Section:
    parts = []
    for each in members:
        facts = {'role': each.role, 'seed': (each.run.values.get('randomness') or {}).get('seed'),
                 'iterations logged': each.run.train[-1]['iter'] if each.run.train else None,
                 **environment(each.run)}
        listed = '\n'.join(f'{key}: {value}' for key, value in facts.items() if value not in (None, ''))
        config = each.run.config.read_text(encoding='utf-8') if each.run.config else 'none in the folder'
        parts.append(f'<details><summary>{escape(each.name)}</summary><pre>{escape(listed)}</pre>'
                     f'<h3>Config, all values spelled out</h3><pre>{escape(config)}</pre></details>')
    return Section('settings', 'Exact configs and versions', ''.join(parts))


def environment(run: Run) -> dict[str, str]:
    """What the log says of the machine and the versions."""
    logs = sorted(run.folder.glob('*/*.log'))
    if not logs:
        return {}
    with open(logs[-1], encoding='utf-8', errors='replace') as file:
        head = file.read(8000)
    wanted = ('Python', 'PyTorch', 'TorchVision', 'OpenCV', 'MMEngine', 'CUDA available', 'GPU 0', 'seed',
              'GPU number')
    found = re.findall(rf'^ {{4}}({"|".join(wanted)}): (.+)$', head, re.MULTILINE)
    return dict(found)


