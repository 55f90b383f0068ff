"""Make, prepare and check data sets (shapes, voc, coco, check)."""
from __future__ import annotations

import argparse
import os
import sys

from hgd_det import MAX_PIXELS
from hgd_det.cli._common import add_force, at_least, json_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest='data_verb', metavar='VERB', required=True)

    shapes = verbs.add_parser(
        'shapes', help='make the built-in set of geometric shapes, in VOC and COCO form')
    shapes.add_argument('out', metavar='OUT', help='folder to write, for example data/shapes')
    shapes.add_argument('--train', type=int, default=3000, help='training images (%(default)s)')
    shapes.add_argument('--test', type=int, default=500, help='test images (%(default)s)')
    shapes.add_argument('--seed', type=int, default=0, help='the set is a function of it (0)')
    shapes.add_argument('--hard', action='store_true',
                        help='160 pixels, ten classes, textures, clutter and stronger occlusion')
    shapes.add_argument('--size', type=int, help='image side in pixels (96; with --hard 160)')
    shapes.add_argument('--force', action='store_true', help='replace another shapes set at OUT')
    _workers(shapes)

    for name, title, parts in (
            ('voc', 'PASCAL VOC 2007 and 2012', 'trainval2007 test2007 trainval2012'),
            ('coco', 'COCO 2017', 'train2017 val2017 annotations')):
        prepare = verbs.add_parser(
            name, help=f'prepare {title} from archives, unpacked folders or the network')
        prepare.add_argument('out', metavar='DIR', nargs='?', default='data',
                             help='data folder (%(default)s)')
        prepare.add_argument('--from', dest='sources', metavar='PATH', nargs='+', default=[],
                             help='archives, unpacked folders, or folders that hold archives; '
                             'nothing is downloaded then')
        prepare.add_argument('--only', metavar='PART', nargs='+', help=f'among: {parts}')
        prepare.add_argument('--mirror', metavar='URL', help='download from here: URL/ARCHIVE')
        prepare.add_argument('--no-checksum', action='store_true',
                             help='take archives that differ from the published ones')
        prepare.add_argument('--no-check', action='store_true',
                             help='leave out reading the whole set at the end')
        _workers(prepare)

    check = verbs.add_parser('check', help='read a whole set and report what would break or bias '
                             'training; exit status 1 when anything does')
    check.add_argument('target', metavar='CONFIG-or-DIR',
                       help='a config, or a folder in VOC or COCO layout')
    check.add_argument('--json', metavar='OUT', type=json_file, help='also write the findings as JSON')
    add_force(check)
    check.add_argument('--write-clean', metavar='OUT',
                       help='write cleaned lists and annotations to this new folder')
    check.add_argument('--classes', metavar='A,B,C',
                       help='the classes that may occur (default: the config, or all in the data)')
    check.add_argument('--examples', type=at_least(0), default=5, help='shown per kind (%(default)s)')
    check.add_argument('--max-pixels', type=at_least(1), default=MAX_PIXELS,
                       help='larger images are not decoded and count as broken (%(default)s)')
    _workers(check)


def _workers(parser) -> None:
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    parser.add_argument('--workers', type=int, default=cores,
                        help='at a time (%(default)s, the cores); the result is the same')


def run(args: argparse.Namespace) -> int:
    from hgd_det.errors import UserError
    if args.workers < 1:
        raise UserError(f'--workers is {args.workers}; give at least 1')
    return dict(shapes=_shapes, voc=_prepare, coco=_prepare, check=_check)[args.data_verb](args)


def _shapes(args) -> int:
    from tqdm import tqdm

    from hgd_det.data import shapes
    options = dict(train=args.train, test=args.test, seed=args.seed, hard=args.hard,
                   size=args.size)
    params = shapes.parameters(**options)
    with tqdm(total=args.train + args.test, unit='image', disable=None) as bar:
        made = shapes.generate(args.out, **options, workers=args.workers, force=args.force,
                               progress=bar.update)
        if not made:
            bar.leave = False
    print(f'{"made" if made else "already there"}: {args.out} ({args.train} train, {args.test} '
          f'test, {params["size"]} px, seed {args.seed})')
    print(f'metainfo=dict(classes={tuple(params["classes"])})')
    return 0


def _prepare(args) -> int:
    from hgd_det.data import prepare
    folder = prepare.prepare(args.data_verb, args.out, sources=args.sources, only=args.only,
                             mirror=args.mirror, checksum=not args.no_checksum)
    if args.no_check:
        return 0
    from hgd_det.data.check import check
    report = check(folder, workers=args.workers)
    print(report.text())
    # The published sets have their known blemishes (COCO's zero-height boxes); those are shown,
    # but only what would stop a training fails the preparation.
    return 1 if report.count('break') else 0


def _check(args) -> int:
    from hgd_det.checkpoint import atomic_write
    from hgd_det.data.check import check
    from hgd_det.outputs import keep_originals, named_files
    classes = None
    if args.classes:
        classes = [name.strip() for name in args.classes.split(',') if name.strip()]
    if args.json:
        keep_originals([args.json], named_files([args.target]), force=args.force)
    report = check(args.target, classes=classes, workers=args.workers, examples=args.examples,
                   max_pixels=args.max_pixels, clean=args.write_clean)
    print(report.text())
    if args.json:
        atomic_write(report.json() + '\n', args.json)
    sys.stdout.flush()
    return 1 if report.count('break') or report.count('bias') else 0
