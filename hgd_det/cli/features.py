"""Draw what detectors see in images: their maps at a few stages, beside the boxes they find.

Writes one picture per image: a row for each detector, in it the image with its boxes, then the maps from
fine to coarse, yellow where a stage responds most.
"""

from __future__ import annotations

import argparse

from hgd_det.cli._common import add_force, add_trust, folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', metavar='CONFIG',
                        help='config of the checkpoint; "auto": the one inside it')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='of a run; of a distillation, its student')
    parser.add_argument('images', metavar='IMAGES', nargs='+', help='images, or folders of them')
    parser.add_argument('--out', metavar='DIR', type=folder, required=True, help='where the pictures go')
    parser.add_argument('--beside', metavar=('CONFIG', 'CHECKPOINT'), nargs=2, action='append', default=[],
                        help='another detector, in a row of its own; may be given several times')
    parser.add_argument('--stages', type=int, nargs='+', default=[], metavar='HEIGHT',
                        help='heights of the maps to show, as in 38 19 10 (default: three of the first '
                             'detector, the coarsest of 10 pixels or more last)')
    parser.add_argument('--score', type=float, default=0.3, metavar='S',
                        help='leave out boxes that score less (0.3)')
    add_force(parser)
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    import sys
    from pathlib import Path

    from hgd_det.checkpoint import trust_checkpoints
    from hgd_det.deploy.pictures import Unreadable, read
    from hgd_det.deploy.sources import check_places, collect
    from hgd_det.errors import UserError
    from hgd_det.outputs import named_files
    from hgd_det.report.detectors import open_detector
    from hgd_det.report.sheets import Sheets

    if not 0 <= args.score <= 1:
        raise UserError(f'--score {args.score:g}: a score lies between 0 and 1')
    trust_checkpoints(args.trust_checkpoint)
    sources = [source for source in collect(args.images, args.out) if not source.video]
    pairs = [(args.config, args.checkpoint), *args.beside]
    places = [Path(args.out, f'{source.name}.features.png') for source in sources]
    check_places(sources, places, list(named_files(pairs)), force=args.force)
    sheets = Sheets([open_detector(checkpoint, None if config == 'auto' else config,
                                   f'{Path(checkpoint).resolve().parent.name}/{Path(checkpoint).stem}')
                     for config, checkpoint in pairs], args.stages, args.score)
    skipped = 0
    for source, place in zip(sources, places, strict=True):
        try:
            sheets.write(read(source.path), place)
        except Unreadable as error:
            print(f'{source.path} is left out: {error}', file=sys.stderr)
            skipped += 1
    print(f'{len(sources) - skipped} pictures in {args.out}; stages '
          + ', '.join('x'.join(map(str, size)) for size in sheets.sizes))
    return 1 if skipped else 0
