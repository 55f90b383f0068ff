"""Feeds damaged and hostile files to all that reads data sets: checking, cleaning, preparing, training.

    python tests/faults/fuzz_readers.py --seconds 60 --seed 1     # a run; status 1 if anything was found
    python tests/faults/fuzz_readers.py work_dirs/fuzz/json-0a1b2c  # one input again, with its traceback

An input may be taken, lead to findings, or be refused with a `UserError`. Anything else is a failure: another
exception, more than some seconds of computing, much memory, a changed file, a file outside of its folder, a
box in training that is no box, data that was found clean and then is not used as it stands, or that is not
clean after cleaning. What leads to an outcome not seen before is kept and changed further.
"""
import argparse
import base64
import contextlib
import faulthandler
import gc
import hashlib
import io
import itertools
import json
import logging
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from pathlib import Path

import fuzz_inputs as inputs
import fuzz_mutations

import hgd_det  # noqa: F401
from hgd_det.data import check, prepare
from hgd_det.data.datasets import CocoFolder, VOCFolder
from hgd_det.data.findings import KINDS
from hgd_det.errors import UserError

PLACES = dict(xml='VOC2007/Annotations/a.xml', list='VOC2007/ImageSets/Main/trainval.txt',
              json='annotations/instances_train.json', image='VOC2007/JPEGImages/a.jpg')
DATASETS = {VOCFolder: dict(ann_file=PLACES['list'], data_prefix=dict(sub_data_root='VOC2007/')),
            CocoFolder: dict(ann_file=PLACES['json'], data_prefix=dict(img='VOC2007/JPEGImages/'))}
PART = prepare.PARTS['voc'][0]
PIXELS = 1_000_000
NOTES = {kind for kind, (severity, _) in KINDS.items() if severity == 'note'}
SECONDS = 5          # of computing, for one input
MEMORY = 300 << 20   # beyond what the sound inputs take
PIPELINE = [dict(type='mmdet.LoadAnnotations', with_bbox=True), dict(type='mmdet.Resize', scale=(32, 32)),
            dict(type='mmdet.PackDetInputs', meta_keys=('img_id', 'ori_shape'))]


class Wrong(Exception):
    """A rule of the module's docstring is broken."""


class Hang(BaseException):
    """No reader catches it."""


def hang(*_):
    raise Hang(f'more than {SECONDS} seconds')


class Readers:
    """All that reads a set, on a folder with one file replaced; `run` gives the outcomes, short strings."""

    def __init__(self, root: Path):
        self.root, self.folder, self.sound, self.count = root, root / 'set', inputs.tree(), itertools.count()
        for path, content in self.sound.items():
            self._write(path, content)

    def _write(self, path, content):
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_bytes(content)

    def run(self, kind: str, data: bytes) -> set:
        if kind == 'archive':
            return self._prepare(data)
        self._write(PLACES[kind], data)
        wanted = self.sound | {PLACES[kind]: data}
        try:
            found = self._check(kind, wanted)
            if contents(self.folder) != wanted:
                raise Wrong('a file of the set was changed')
            return found
        finally:
            self._write(PLACES[kind], self.sound[PLACES[kind]])

    def _check(self, kind, wanted):
        """Check and clean, check what was cleaned, train on both."""
        clean = self.root / f'clean{next(self.count)}'
        report = refused(check.check, self.folder, classes=inputs.CLASSES, clean=clean, progress=False,
                         max_pixels=PIXELS)
        if isinstance(report, str):
            return {f'check {report}'}
        report.text().encode()
        json.loads(report.json())
        found = {f'check {name}' for name in report.counts}
        severe = {name for name in report.counts if name not in NOTES}
        found |= self._train(kind, self.folder, severe)
        if (clean / 'VOC2007').is_dir():
            again = refused(check.check, clean, classes=inputs.CLASSES, progress=False, max_pixels=PIXELS)
            if not isinstance(again, str):
                left = {name for name in again.counts if name not in NOTES}
                found |= {f'cleaned {name}' for name in left}
                if left - {'split_empty', 'category_missing', 'json_broken', 'json_keys'}:
                    raise Wrong(f'{sorted(left)} left after cleaning')
        refused(check.check, self.folder, progress=False, max_pixels=PIXELS)
        remove(clean)
        return found

    def _train(self, kind, folder, severe):
        found = set()
        for dataset, options in DATASETS.items():
            if kind != 'image' and (kind == 'json') != (dataset is CocoFolder):
                continue
            for test_mode in (False, True):
                name = dataset.__name__ + ' test' * test_mode
                broken = 'blank' if test_mode else 'skip'
                load = dict(type='mmdet.RobustLoadImage', max_pixels=PIXELS, broken=broken)
                made = refused(dataset, data_root=str(folder), metainfo=dict(classes=inputs.CLASSES),
                               test_mode=test_mode, pipeline=[load, *PIPELINE], **options)
                if isinstance(made, str):
                    found.add(f'{name} {made}')
                    if not severe:
                        raise Wrong(f'found clean, but {name} {made}')
                    continue
                found |= {f'{name} left out {kind}' for kind in made.skipped}
                if made.skipped and not severe:
                    raise Wrong(f'found clean, but {name} left out {dict(made.skipped)}')
                for i in range(len(made)):
                    sound_boxes(made[i], name)
        return found

    def _prepare(self, data):
        work = self.root / f'archive{next(self.count)}'
        work.mkdir()
        archive, out = work / PART.archive, work / 'out'
        archive.write_bytes(data)
        try:
            folder = refused(prepare.prepare, 'voc', out, sources=[archive], only=[PART.key], checksum=False,
                             say=lambda _: None, progress=False)
            if archive.read_bytes() != data:
                raise Wrong('the archive was changed')
            if {path.name for path in work.iterdir()} - {PART.archive, 'out'}:
                raise Wrong('written outside of the target')
            if isinstance(folder, str):
                return {f'prepare {folder}'}
            report = refused(check.check, folder, progress=False, max_pixels=PIXELS)
            return {f'prepared {kind}' for kind in ([report] if isinstance(report, str) else report.counts)}
        finally:
            remove(work)


def refused(function, *args, **kwargs):
    """What it returns, or the message of its `UserError` without what differs from input to input."""
    try:
        return function(*args, **kwargs)
    except UserError as error:
        text = re.sub(r'/\S+|\'[^\']*\'|"[^"]*"|\d+|\([^)]*\)', '_', str(error))
        return f'refused: {text[:60]}'


def sound_boxes(item, name):
    instances = item['data_samples'].gt_instances.bboxes.tensor
    ignored = item['data_samples'].ignored_instances.bboxes.tensor
    for boxes in (instances, ignored):
        if not boxes.isfinite().all() or (boxes[:, 2:] < boxes[:, :2]).any() or (boxes.abs() > 1e8).any():
            raise Wrong(f'{name} trains on {boxes.tolist()}')


def contents(folder: Path) -> dict:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def remove(folder: Path) -> None:
    """As `rm -r`, whatever the names in it."""
    for base, folders, files in os.walk(folder, topdown=False):
        for name in files + folders:
            path = os.path.join(base, name)
            os.unlink(path) if os.path.islink(path) or not os.path.isdir(path) else os.rmdir(path)
    if folder.exists():
        folder.rmdir()


class Fuzz:
    def __init__(self, readers: Readers, seed: int, failures: Path):
        self.readers, self.random, self.failures = readers, random.Random(seed), failures
        self.failures.mkdir(parents=True, exist_ok=True)
        self.corpus = inputs.seeds()
        self.outcomes, self.failed, self.inputs, self.slowest = Counter(), {}, Counter(), 0.
        for kind, data in [(kind, one) for kind, several in self.corpus.items() for one in several]:
            self.one(kind, data, 'sound')
        self.memory = peak()

    def one(self, kind: str, data: bytes, how: str) -> set:
        """The outcomes that no input had before."""
        path = self.failures / f'{kind}-{hashlib.blake2b(data, digest_size=6).hexdigest()}'
        path.write_bytes(data)  # what ends the process as a whole leaves it here
        began, before = time.process_time(), peak()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # COCO's reader tells how long it took
                found = self.readers.run(kind, data)
            signal.setitimer(signal.ITIMER_PROF, 0)
            if peak() - before > MEMORY:
                raise Wrong(f'{(peak() - before) >> 20} MB of memory')
        except (Exception, Hang) as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            place = [f'{frame.filename}:{frame.name}' for frame in traceback.extract_tb(error.__traceback__)
                     if 'hgd_det/' in frame.filename]
            text = re.sub(r'\d+', '0', str(error))[:60] if isinstance(error, Wrong) else ''
            what = (type(error).__name__, place[-1] if place else '', text)
            if what in self.failed:
                path.unlink()
            else:
                self.failed[what] = path
                print(f'\nFAILED by {how}: python {__file__} {path}')
                packed = base64.b64encode(zlib.compress(data)).decode()
                if len(packed) < 3000:
                    print(f'  or: python {__file__} {kind}:{packed}')
                print(''.join(line[:500] for line in traceback.format_exception(error, limit=-6)))
            return set()
        path.unlink()
        self.slowest = max(self.slowest, time.process_time() - began)
        self.inputs[kind] += 1
        fresh = {f'{kind}: {one}' for one in found} - self.outcomes.keys()
        self.outcomes.update(f'{kind}: {one}' for one in found)
        return fresh

    def run(self, seconds: float, count: int | None) -> None:
        """So many inputs, the same ones on any machine, or what there is time for."""
        end, kinds, made = time.monotonic() + seconds, list(self.corpus), 0
        while made < count if count is not None else time.monotonic() < end:
            made += 1
            kind = self.random.choice(kinds)
            data, how = fuzz_mutations.mutate(self.random, self.random.choice(self.corpus[kind]), kind)
            if self.one(kind, data, how):
                self.corpus[kind].append(data)

    def report(self) -> str:
        counts = ', '.join(f'{count} {kind}' for kind, count in sorted(self.inputs.items()))
        return (f'{self.inputs.total()} inputs ({counts}), {len(self.outcomes)} outcomes, the slowest input '
                f'took {self.slowest:.2f} s, memory grew by {(peak() - self.memory) >> 20} MB: '
                f'{len(self.failed)} failures')


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def replay(readers: Readers, given: str) -> None:
    kind, _, packed = given.partition(':')
    data = zlib.decompress(base64.b64decode(packed)) if packed else Path(given).read_bytes()
    for outcome in sorted(readers.run(Path(kind).name.split('-')[0], data)):
        print(outcome)


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument('replay', nargs='*', metavar='FILE or KIND:BASE64', help='inputs to run once more')
    parser.add_argument('--seconds', type=float, default=60)
    parser.add_argument('--inputs', type=int, metavar='N', help='after so many, not after a time')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--failures', type=Path, default='work_dirs/fuzz', help='where failing inputs go')
    parser.add_argument('--outcomes', action='store_true', help='list every outcome and how often it came')
    args = parser.parse_args()
    logging.disable()
    warnings.simplefilter('ignore')
    signal.signal(signal.SIGPROF, hang)
    gc.freeze()  # every data set that is made collects garbage: nothing of what is imported
    with tempfile.TemporaryDirectory(prefix='fuzz-') as root:
        readers = Readers(Path(root))
        for given in args.replay:
            replay(readers, given)
        if args.replay:
            return 0
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders tell there what they think of their input
        faulthandler.enable(sys.stdout)
        limit = 300 + (args.seconds if args.inputs is None else args.inputs)
        faulthandler.dump_traceback_later(limit, exit=True, file=sys.stdout)
        fuzz = Fuzz(readers, args.seed, args.failures)
        fuzz.run(args.seconds, args.inputs)
        faulthandler.cancel_dump_traceback_later()
    if args.outcomes:
        print('\n'.join(f'{count:7} {name}' for name, count in sorted(fuzz.outcomes.items())))
    print(fuzz.report())
    return 1 if fuzz.failed else 0


if __name__ == '__main__':
    sys.exit(main())
