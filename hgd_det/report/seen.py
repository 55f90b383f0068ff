"""The sections that need the models: panels, errors, speed."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from hgd_det.report import charts, panels
from hgd_det.report.cast import Member, leading, mean
from hgd_det.report.detectors import Scene
from hgd_det.report.errors import recalled, tally
from hgd_det.report.evidence import Evidence
from hgd_det.report.html import Section, count, figure, picture, table
from hgd_det.report.panels import View

OBJECTS = (('found', 0, 'found'), ('class', 1, 'wrong class'), ('place', 2, 'badly placed'),
           ('missed', 3, 'missed'))
FALSE = (('class', 1, 'wrong class'), ('place', 2, 'badly placed'), ('twice', 4, 'found twice'),
         ('background', 5, 'background'))
MARKS = '<ul class="legend">' + ''.join(
    f'<li><i class="mark {css}"></i> {text}</li>' for css, text in (
        ('found', 'found'), ('recalled', 'found, and missed by the student alone'), ('wrong', 'a wrong box'),
        ('missed', 'an object not found'))) + '</ul>'


# ------------------------------------------------------------------------------------------ panels
def views(members: Sequence[Member], evidence: Evidence) -> Section | None:
    if not evidence.scenes:
        return None
    shown = [each for each in members if each.name in evidence.scenes[0][1]]
    parts = [_scene(shown, scene, seen, evidence) for scene, seen in evidence.scenes]
    which = (f'those of {evidence.looked} on which the two students differ most, for better or worse'
             if evidence.chosen else 'evenly spread over the set')
    return Section('views', 'What they see', (
        f'<p class="lead">{count(len(evidence.scenes), "test image")}, {which}. Under each are maps from '
        'inside the detectors: yellow where a stage responds most. The number says how alike a stage is to '
        f'the teacher’s (linear CKA, 1 is the same). {escape(_likeness_story(shown, evidence))}</p>{MARKS}'
        f'<div class="scenes">{"".join(parts)}</div>'))


def _scene(shown: Sequence[Member], scene: Scene, seen: Mapping[str, View], evidence: Evidence) -> str:
    lead = leading(shown, 'alone')
    alone = seen[lead.name].outcome if lead else None
    shape = panels.fitted(scene.image)
    rows = ['<tr><th scope="row">boxes</th>' + ''.join(
        f'<td>{_boxes(each, scene, seen[each.name], alone)}</td>' for each in shown) + '</tr>']
    for size in evidence.sizes:
        cells = [_map(each, size, seen, shown, shape, scene) for each in shown]
        rows.append(f'<tr><th scope="row">{size[0]}×{size[1]}</th>{"".join(cells)}</tr>')
    head = '<tr><td></td>' + ''.join(
        f'<th scope="col"><b class="s{each.colour}">{escape(each.name)}</b></th>' for each in shown) + '</tr>'
    columns = f'<colgroup><col>{"<col>" * len(shown)}</colgroup>'
    body = f'<thead>{head}</thead><tbody>{"".join(rows)}</tbody>'
    return figure(f'<table class="panel">{columns}{body}</table>', escape(_scene_story(shown, scene, seen)))


def _boxes(member: Member, scene: Scene, view: View, alone) -> str:
    counts = tally([view.outcome])
    wrong = sum(counts['boxes'][kind] for kind, *_ in FALSE)
    objects = sum(counts['objects'].values()) - counts['objects']['ignored']
    alt = (f'{scene.name} with the boxes of {member.name}: {counts["objects"]["found"]} of '
           f'{count(objects, "object")} found, {count(wrong, "wrong box")}')
    drawn = panels.draw(scene, view, alone if member.role == 'distilled' else None)
    return picture(panels.encode(drawn, '.jpg'), 'jpeg', alt, shape=drawn.shape[:2])


def _map(member: Member, size, seen: Mapping[str, View], shown: Sequence[Member], shape, scene: Scene) -> str:
    values = seen[member.name].maps.get(size)
    if values is None:
        return '<td><span>no such stage</span></td>'
    alike = _alike(member, size, seen, shown)
    note, number = ('', '&nbsp;') if alike is None else (
        f', alike to the teacher’s by {alike:.2f}', f'{alike:.2f}')
    alt = f'Stage {size[0]}x{size[1]} of {member.name} on {scene.name}{note}'
    return (f'<td>{picture(panels.encode(panels.heat(values)), "png", alt, "map", shape)}'
            f'<span>{number}</span></td>')


def _alike(member: Member, size, seen: Mapping[str, View], shown: Sequence[Member]) -> float | None:
    teacher = leading(shown, 'teacher')
    if teacher is None or member.role == 'teacher':
        return None
    one, other = (seen[each.name].maps.get(size) for each in (member, teacher))
    return None if one is None or other is None else panels.likeness(one, other)


def _scene_story(shown: Sequence[Member], scene: Scene, seen: Mapping[str, View]) -> str:
    """What the distilled student gains and loses on this image against the one alone."""
    objects = count(int((~scene.difficult).sum()), 'object')
    finds = ', '.join(f'{each.name} finds {tally([seen[each.name].outcome])["objects"]["found"]}'
                      for each in shown)
    text = f'{scene.name}: {objects}; {finds}.'
    alone, distilled = (leading(shown, role) for role in ('alone', 'distilled'))
    if alone and distilled:
        a, b = ([seen[each.name].outcome] for each in (alone, distilled))
        if gained := recalled(b, a):
            text += f' {distilled.name} recalls {count(gained, "object")} that {alone.name} misses.'
        if lost := recalled(a, b):
            text += f' It misses {lost} that {alone.name} finds.'
    return text


def _likeness_story(shown: Sequence[Member], evidence: Evidence) -> str:
    means = {}
    for each in shown:
        value = mean([_alike(each, size, seen, shown) for _, seen in evidence.scenes
                      for size in evidence.sizes])
        if value is not None:
            means[each.name] = value
    return ('On average: ' + ', '.join(f'{name} {value:.2f}' for name, value in means.items()) + '.'
            if means else '')


# ------------------------------------------------------------------------------------------ errors
def mistakes(members: Sequence[Member], evidence: Evidence, score: float) -> Section | None:
    shown = [each for each in members if evidence.outcomes.get(each.name)]
    if not shown:
        return None
    counts = {each.name: tally(evidence.outcomes[each.name]) for each in shown}
    total = max(sum(each['objects'][kind] for kind, *_ in OBJECTS) for each in counts.values())
    objects = [(each.name, [(word, colour, counts[each.name]['objects'][kind])
                            for kind, colour, word in OBJECTS]) for each in shown]
    false = [(each.name, [(word, colour, counts[each.name]['boxes'][kind])
                          for kind, colour, word in FALSE]) for each in shown]
    rows = [[f'{what} {word}', *(f'{counts[each.name][part][kind]:,}' for each in shown)]
            for part, what, kinds in (('objects', 'objects', OBJECTS), ('boxes', 'boxes', FALSE))
            for kind, _, word in kinds]
    images = (f'all {evidence.total} test images' if evidence.looked == evidence.total else
              f'{evidence.looked} of {evidence.total} test images, evenly spread')
    return Section('errors', 'What goes wrong', (
        f'<p class="lead">{escape(_error_story(shown, evidence))} Looked at: {images}; boxes that score '
        f'{score:g} or more.</p><div class="wide">'
        + figure('<h3>What becomes of the objects</h3>' + charts.legend([(f'k{c}', w) for _, c, w in OBJECTS])
                 + charts.stacked('What becomes of the objects', _in_words(objects), objects, total),
                 f'{total:,} objects, each counted once. “Wrong class” and “badly placed”: a box '
                 'points at it, but with another name or a poor outline. “Missed”: no box does.')
        + figure('<h3>Boxes that are wrong</h3>' + charts.legend([(f'k{c}', w) for _, c, w in FALSE])
                 + charts.stacked('Boxes that are wrong', _in_words(false), false),
                 'Each wrong box counted once; shorter is better. “Wrong class” includes second boxes on '
                 'objects that were found. “Background”: nothing of the kind is there.')
        + '</div>' + table(
            ['', *(f'<span class="s{each.colour}">{escape(each.name)}</span>' for each in shown)], rows,
            'A box finds an object at IoU 0.5 or more and is badly placed from 0.1 to 0.5. The rules are '
            'those of TIDE, simplified.')))


def _error_story(shown: Sequence[Member], evidence: Evidence) -> str:
    alone, distilled = (leading(shown, role) for role in ('alone', 'distilled'))
    if not (alone and distilled):
        return 'How objects are lost, and which boxes are wrong.'
    a, b = (evidence.outcomes[each.name] for each in (alone, distilled))
    return (f'{distilled.name} recalls {count(recalled(b, a), "object")} that {alone.name} does not find, '
            f'and loses {recalled(a, b):,} that it finds.')


def _in_words(rows) -> str:
    return '; '.join(f'{name}: ' + ', '.join(f'{number} {kind}' for kind, _, number in parts)
                     for name, parts in rows)


# ------------------------------------------------------------------------------------------- speed
def speed(members: Sequence[Member], evidence: Evidence, missing: list[str]) -> Section | None:
    points = [(each.name, each.colour, evidence.latency[each.name], each.run.mAP) for each in members
              if each.name in evidence.latency and each.run.mAP is not None]
    points += [(name, 6, ms, value) for name, ms, value in evidence.others]
    if len(points) < 2:
        missing.append('latency against mAP: it takes two runs with a checkpoint and an evaluation')
        return None
    text = '; '.join(f'{name}: {ms:.1f} ms, {100 * value:.1f} mAP' for name, _, ms, value in points)
    return Section('speed', 'Speed against precision', figure(
        charts.scatter('Latency against mAP', text, points),
        f'mAP in percent over milliseconds for an image ({escape(evidence.timing)}). Up and to the left is '
        'better. A distilled student is as fast as the one trained alone: it is the same detector.'))
