"""Reads whole data sets, every file once, and reports what would break or bias a training.

Files are read, hashed and decoded by threads (those steps release the interpreter lock) in a
window of bounded size; per image only its digest and the kinds found are kept.
"""
from __future__ import annotations

from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from hgd_det import MAX_PIXELS
from hgd_det.errors import UserError

from . import coco, images, sources, voc
from .findings import UNFIT, Finding, Report, fold

# Pairs of roles that must not share images.
APART = (('train', 'val'), ('train', 'test'), ('trainval', 'test'), ('val', 'test'))


@dataclass
class Result:
    """What one image gave."""
    name: str
    findings: list = field(default_factory=list)
    digest: bytes | None = None
    classes: Counter = field(default_factory=Counter)

    @property
    def fit(self) -> bool:
        return not any(finding.kind in UNFIT for finding in self.findings)


@dataclass
class Checked:
    """One source after checking; `results` in the order of its list."""
    source: sources.Source
    results: list
    dropped: int = 0  # entries of the list that name no readable image at all
    leaked: set = field(default_factory=set)


def check(target, *, classes=None, workers: int = 1, examples: int = 5,
          max_pixels: int = MAX_PIXELS, clean=None, progress: bool = True) -> Report:
    """Check a folder in VOC or COCO layout, or the data sets a config names.

    `classes` overrides the config's; with neither, all classes of the data are taken as meant.
    `clean` is a folder to write cleaned lists and annotations to; originals are never changed.
    """
    target = Path(target).expanduser()
    if not target.exists():
        raise UserError(f'{target} does not exist; give a config file, or a folder in VOC or COCO '
                        'layout')
    if clean is not None:
        clean = Path(clean).expanduser()
        if clean.exists() and not (clean.is_dir() and not any(clean.iterdir())):
            raise UserError(f'{clean} is not empty, or a file; cleaned lists go to a new folder')
    found = sources.from_folder(target) if target.is_dir() else sources.from_config(target)
    report = Report(str(target), examples)
    done, checked = {}, []
    with ThreadPoolExecutor(workers) as pool:
        for source in found:
            run = _check_voc if source.form == 'voc' else _check_coco
            checked.append(run(source, tuple(classes) if classes else source.classes, report, done,
                               pool, workers, max_pixels, progress))
    _duplicates_and_leaks(checked, report)
    _spellings(checked, tuple(classes) if classes else None, report)
    if clean is not None:
        from .clean import write
        report.cleaned = write(clean, checked, classes)
    return report


def _ordered(pool, function, items, workers: int, total: int, title: str, progress: bool):
    """`map` with a bounded number of results waiting, and a bar on terminals."""
    from tqdm import tqdm
    waiting = deque()
    with tqdm(total=total, desc=title, unit='image', disable=None if progress else True) as bar:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 8 * workers:
                yield waiting.popleft().result()
                bar.update()
        while waiting:
            yield waiting.popleft().result()
            bar.update()


def _collect(source, results, report: Report, seen_before) -> list:
    """Adds the findings of images not checked before, and the counts of the split."""
    kept, totals = [], Counter()
    for result in results:
        if not seen_before(result):
            for finding in result.findings:
                report.add(finding)
        totals.update(result.classes)
        kept.append(result)
    report.splits.append(dict(name=source.name, images=len(kept), objects=sum(totals.values()),
                              classes=dict(totals)))
    return kept


def _check_voc(source, classes, report, done, pool, workers, max_pixels, progress) -> Checked:
    dropped = 0
    if source.listing is None:
        names = sorted(path.stem for path in source.annotations.glob('*.xml'))
        problems = [] if names else [('split_empty', '', 0)]
    else:
        names, problems = voc.read_list(source.listing)
    for kind, detail, line in problems:
        dropped += kind in ('id_blank', 'id_unsafe', 'id_duplicate')
        report.add(Finding(kind, source.name + (f' line {line}' if line else ''), detail))
    known = set(names)
    key = (source.images, source.annotations)
    before = done.setdefault(key, {})
    old = set(before)

    def one(name):
        if name not in before:
            before[name] = _voc_image(source, name, classes, known, max_pixels)
        return before[name]

    results = _ordered(pool, one, names, workers, len(names), source.name, progress)
    return Checked(source, _collect(source, results, report, lambda r: r.name in old), dropped)


def _voc_image(source, name: str, classes, known: set, max_pixels: int) -> Result:
    result = Result(name)

    def add(kind, detail='', times=1):
        result.findings.append(Finding(kind, name, detail, times))

    path = images.find(source.images, name)
    if path is not None and path.suffix != '.jpg':
        if source.jpg_only:
            add('image_missing', f'{name}.jpg; there is {path.name}, which VOCFolder reads')
        else:
            add('image_suffix', path.name)
    facts = images.probe(path or source.images / f'{name}.jpg', max_pixels)
    result.digest = facts.digest
    for kind, detail in facts.problems:
        add(kind, detail)
    try:
        annotation = voc.read(source.annotations / f'{name}.xml')
    except voc.AnnotationError as error:
        add(error.kind, error.detail)
        return result
    for kind, detail in annotation.problems:
        add(kind, detail)
    _compare_size(facts, annotation.size, add)
    given = annotation.filename.replace('\\', '/').split('/')[-1] if annotation.filename else name
    if given != name and given.rpartition('.')[0] != name:
        other = given.rpartition('.')[0] if given.rpartition('.')[0] in known else given
        add('filename_other' if other in known else 'filename_wrong', annotation.filename)
    _voc_objects(annotation, facts.shown or annotation.size, classes, result, add)
    return result


def _voc_objects(annotation, size, classes, result: Result, add) -> None:
    boxes = set()
    if difficult := sum(thing.difficult != 0 for thing in annotation.objects):
        add('difficult', times=difficult)
    for thing in annotation.objects:
        for kind, detail in thing.problems:
            add(kind, detail)
        if thing.name is not None and classes is not None and thing.name not in classes:
            add('class_unknown', repr(thing.name) + hint(thing.name, classes))
            continue
        if thing.name is None or thing.box is None:
            continue
        box = voc.mmdet_box(thing.box)
        text = f'{thing.name} {[int(value) for value in thing.box]}'
        if kind := voc.judge(box, size):
            add(kind, text + (f' in {size[0]}x{size[1]}' if kind == 'box_outside' else ''))
            continue
        result.classes[thing.name] += 1
        if min(box) < 0 or (size and (box[2] >= size[0] or box[3] >= size[1])):
            add('box_off_by_one', text)
        if min(box[2] - box[0], box[3] - box[1]) < 4:
            add('box_tiny', text)
        if (thing.name, *box) in boxes:
            add('box_duplicate', text)
        boxes.add((thing.name, *box))
    if not result.classes:
        add('image_empty')


def _compare_size(facts, declared, add) -> None:
    if facts.shown is None:
        return
    stored, shown = tuple(facts.stored), tuple(facts.shown)
    if facts.rotated:
        agrees = declared is not None and tuple(declared) == shown != stored
        add('exif_consistent' if agrees else 'exif_rotated', f'{stored[0]}x{stored[1]} stored, '
            f'{shown[0]}x{shown[1]} shown, annotated {_by(declared)}')
        if agrees or declared is None or tuple(declared) == stored:
            return
    if declared is not None and tuple(declared) != shown:
        add('size_wrong', f'annotated {_by(declared)}, is {_by(shown)}')


def _by(size) -> str:
    return 'without size' if size is None else f'{size[0]}x{size[1]}'


def hint(name: str, classes) -> str:
    """Names the class that differs only in case, spaces, hyphens or underscores."""
    near = [one for one in classes if fold(one) == fold(name)]
    return f' (meant {near[0]!r}?)' if near else ''


def _check_coco(source, classes, report, done, pool, workers, max_pixels, progress) -> Checked:
    entries, categories, findings = coco.read(source.listing)
    for finding in findings:
        report.add(finding)
    for name in classes or ():
        if categories and name not in categories.values():
            report.add(Finding('category_missing', source.listing.name,
                               repr(name) + hint(name, categories.values())))
    if classes is not None:
        seen = Counter(thing[0] for entry in entries for thing in entry.objects)
        for name in sorted(set(categories.values()) - set(classes)):
            if times := seen[name]:
                report.add(Finding('class_unknown', source.listing.name,
                                   repr(name) + hint(name, classes), times))

    def one(entry):
        result = Result(entry.file_name)

        def add(kind, detail='', times=1):
            result.findings.append(Finding(kind, entry.file_name, detail, times))

        facts = images.probe(source.images / entry.file_name, max_pixels)
        result.digest = facts.digest
        for kind, detail in facts.problems:
            add(kind, detail)
        _compare_size(facts, entry.size, add)
        result.classes.update(thing[0] for thing in entry.objects
                              if classes is None or thing[0] in classes)
        if entry.crowds:
            add('crowd', times=entry.crowds)
        if not result.classes:
            add('image_empty')
        return result

    results = _ordered(pool, one, entries, workers, len(entries), source.name, progress)
    return Checked(source, _collect(source, results, report, lambda _: False))


def _duplicates_and_leaks(checked: list, report: Report) -> None:
    """Compares contents (digests), so renamed copies are found; a name counts only within a set."""
    for one in checked:
        first = {}
        for result in one.results:
            if result.digest is None:
                continue
            other = first.setdefault(result.digest, result.name)
            if other != result.name:
                report.add(Finding('image_duplicate', result.name, f'same content as {other}'))
    for left, right in APART:
        held = {result.digest: (result.name, one.source.name) for one in checked
                if one.source.role == right for result in one.results if result.digest}
        reported = set()
        for one in checked:
            if one.source.role != left:
                continue
            for result in one.results:
                if result.digest in held:
                    one.leaked.add(result.name)
                    if result.digest not in reported:
                        reported.add(result.digest)
                        name, where = held[result.digest]
                        report.add(Finding('image_leak', f'{one.source.name}: {result.name}',
                                           f'is {name} of {where}'))


def _spellings(checked: list, given, report: Report) -> None:
    """Without a class list, names that differ only in spelling; with one, classes never seen."""
    totals = Counter()
    for one in checked:
        for result in one.results:
            totals.update(result.classes)
    listed = given or next((one.source.classes for one in checked if one.source.classes), None)
    if listed:
        for name in listed:
            if not totals[name] and totals:
                report.add(Finding('class_unused', repr(name)))
        return
    groups = {}
    for name, times in totals.most_common():
        first = groups.setdefault(fold(name), name)
        if first != name:
            report.add(Finding('class_unknown', repr(name), f'meant {first!r}?', times))
