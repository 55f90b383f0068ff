"""What a report shows beyond the logs: models are opened, timed and shown test images, within bounds."""
from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmdet.registry import MODELS

from hgd_det.checkpoint import sha256
from hgd_det.deploy.bench import cores, cpu
from hgd_det.deploy.student import building
from hgd_det.engine.doctor import spread
from hgd_det.errors import UserError
from hgd_det.gate import admit
from hgd_det.report import panels
from hgd_det.report.cast import ORDER, Member, leading, terms
from hgd_det.report.detectors import Detector, Scene, Scenes, latencies, look, open_detector
from hgd_det.report.errors import Outcome, outcome, recalled
from hgd_det.report.panels import Size, View
from hgd_det.report.runs import mean_ap

IMAGES = 200       # looked at for errors, at most ...
SECONDS = 60       # ... or as many as take so long
SIDE_BY_SIDE = 4   # detectors in a panel


@dataclass
class Evidence:
    """
    Attributes:
        detectors: By the run's name.
        latency: Milliseconds for an image, by the run's name; `timing` says how they were measured.
        others: (name, ms, mAP) of models of a benchmark that are no run: exported files.
        outcomes: Of each detector on the same `looked` test images.
        scenes: Those shown, with each detector's view.
        pairs: Of each distilled run, by term.
        missing: What could not be had, a sentence each.
    """
    detectors: dict[str, Detector] = field(default_factory=dict)
    latency: dict[str, float] = field(default_factory=dict)
    timing: str = ''
    others: list[tuple[str, float, float]] = field(default_factory=list)
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    looked: int = 0
    total: int = 0
    scenes: list[tuple[Scene, dict[str, View]]] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    chosen: bool = False    # the scenes, as those on which two students differ most
    classes: tuple[str, ...] = ()
    pairs: dict[str, dict[str, list[dict]]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def gather(members: Sequence[Member], *, images: int = 4, score: float = 0.3, bench: str | Path | None = None,
           say: Callable[[str], object] = lambda text: None) -> Evidence:
    """All that needs the models. `bench` is a JSON file of `hgd-det bench`; without it detectors are timed
    for some seconds."""
    found = Evidence()
    for member in members:
        say(f'opening {member.name}')
        try:
            if member.run.checkpoint is None:
                raise UserError('no checkpoint in its folder')
            found.detectors[member.name] = open_detector(member.run.checkpoint, name=member.name)
        except UserError as error:
            found.missing.append(f'{member.name} could not be opened: {error}')
        if terms(member.run):
            try:
                found.pairs[member.name] = correspondence(member)
            except UserError as error:
                found.missing.append(f'who imitates whom in {member.name} is not known: {error}')
    if found.detectors:
        say('timing')
        _time(found, members, bench)
        try:
            _look(found, members, images, score, say)
        except UserError as error:
            found.missing.append(f'no test images, so neither panels nor errors: {error}')
    return found


def correspondence(member: Member) -> dict[str, list[dict]]:
    """Of each term the pairs it reads: size, taps, channels, adapter."""
    cfg = admit(member.run.values, member.run.config)
    with building(cfg):
        model = MODELS.build(cfg.model)
    return {name: pairs for name, term in model.distill.items() if (pairs := term.describe())}


# ------------------------------------------------------------------------------------------ timing
def _time(found: Evidence, members: Sequence[Member], bench: str | Path | None) -> None:
    if bench is not None:
        _read_bench(found, members, bench)
    else:
        times = latencies(list(found.detectors.values()))
        found.latency = {name: each['median_ms'] for name, each in zip(found.detectors, times, strict=True)}
        found.timing = (f'median of {len(times[0]["ms"])} calls, one image of noise, one thread of '
                        f'{cpu()}, PyTorch{busy()}')


def busy() -> str:
    load, number = os.getloadavg()[0], cores()
    return f'; the machine was busy (load {load:.1f} on {number} cores), so roughly' if load > number else ''


def _read_bench(found: Evidence, members: Sequence[Member], path: str | Path) -> None:
    try:
        report = json.loads(Path(path).read_text())
        models = {model['model']: model for model in report['models']}
        fewest = min((each['batch'], each['threads']) for each in report['times'])
        times = {each['model']: each['median_ms'] for each in report['times']
                 if (each['batch'], each['threads']) == fewest}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} is no JSON of hgd-det bench: {error!r}') from None
    digests = {sha256(each.run.checkpoint): each.name for each in members if each.run.checkpoint}
    for name, model in models.items():
        metric = mean_ap(model.get('metrics') or {})
        if model['sha256'] in digests:
            found.latency[digests[model['sha256']]] = times[name]
        elif metric is not None:
            found.others.append((name, times[name], metric))
    batch, threads = fewest
    found.timing = f'hgd-det bench, batch {batch}, {threads} thread{"s" * (threads > 1)}'


# ----------------------------------------------------------------------------------------- looking
def _look(found: Evidence, members: Sequence[Member], images: int, score: float,
          say: Callable[[str], object]) -> None:
    source = next(found.detectors[each.name] for each in reversed(members) if each.name in found.detectors)
    tests = Scenes(source.student.config)
    found.classes = tests.classes
    able = {}
    for name, detector in found.detectors.items():
        if len(detector.model.classes) == len(tests.classes):
            able[name] = detector
        else:
            found.missing.append(f'{name} knows {len(detector.model.classes)} classes and the test set has '
                                 f'{len(tests.classes)}, so it was not shown any image')
    looked = spread(len(tests), max(images, min(IMAGES, int(SECONDS / _seconds(able, tests, score)))))
    found.looked, found.total = len(looked), len(tests)
    found.outcomes = {name: [] for name in able}
    for count, index in enumerate(looked):
        if count % 20 == 0:
            say(f'looking at test image {count + 1} of {len(looked)}')
        scene = tests.scene(index)
        for name, detector in able.items():
            found.outcomes[name].append(_outcome(look(detector, scene.image, score), scene))
    if images:
        say('drawing')
        _show(found, members, able, tests, looked, images, score)


def _seconds(able: Mapping[str, Detector], tests: Scenes, score: float) -> float:
    """For all detectors to look at an image; they have done so once before."""
    scene, began = tests.scene(0), 0.0
    for _ in range(2):
        began = time.perf_counter()
        for detector in able.values():
            look(detector, scene.image, score)
    return time.perf_counter() - began


def _outcome(detections, scene: Scene) -> Outcome:
    return outcome(*detections, scene.boxes, scene.labels, scene.difficult)


def _show(found: Evidence, members: Sequence[Member], able: Mapping[str, Detector], tests: Scenes,
          looked: Sequence[int], images: int, score: float) -> None:
    there = [each for each in members if each.name in able]
    leads = {role: leading(there, role) for role in ORDER}
    wanted = dict.fromkeys([each.name for each in leads.values() if each] + [
        each.name for each in reversed(there)])
    wanted = list(wanted)[:SIDE_BY_SIDE]
    shown = {name: able[name] for name in able if name in wanted}
    if left := [name for name in able if name not in shown]:
        found.missing.append(f'panels have room for {SIDE_BY_SIDE} detectors; without {", ".join(left)}')
    specs = {name: panels.stages(detector) for name, detector in shown.items()}
    found.sizes = panels.choose(list(specs.values()))
    picked = spread(len(looked), images)
    if leads['alone'] and leads['distilled']:
        found.chosen = True
        differ = [recalled([a], [b]) + recalled([b], [a]) for a, b in
                  zip(*(found.outcomes[leads[role].name] for role in ('alone', 'distilled')), strict=True)]
        picked = sorted(range(len(looked)), key=lambda i: -differ[i])[:images]
    for position in picked:
        scene, views = tests.scene(looked[position]), {}
        for name, detector in shown.items():
            detections = look(detector, scene.image, score)
            views[name] = View(detections, _outcome(detections, scene),
                               panels.maps(detector, specs[name], found.sizes, scene.image))
        found.scenes.append((scene, views))
