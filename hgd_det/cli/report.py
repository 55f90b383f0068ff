"""Write one HTML page about some runs: figures, curves, pictures, errors, speed.

Give the work directories of a teacher, of a student trained alone and of distilled students; who is who
follows from their configs. Run it where the runs were trained, so that it finds the test images.
"""

from __future__ import annotations

import argparse

from hgd_det.cli._common import add_force, add_trust, at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('folders', metavar='WORK_DIR', nargs='+', help='work directories of runs')
    parser.add_argument('--out', metavar='FILE', default='report.html',
                        help='the page to write (report.html)')
    parser.add_argument('--images', type=at_least(0), default=4, metavar='N',
                        help='test images in the panels (4)')
    parser.add_argument('--score', type=float, default=0.3, metavar='S',
                        help='leave out boxes that score less (0.3)')
    parser.add_argument('--bench', metavar='JSON',
                        help='take latencies from a file of hgd-det bench --json instead of timing')
    parser.add_argument('--title', default='Distillation report', help='above the page')
    parser.add_argument('--no-models', action='store_true',
                        help='open no checkpoint: the page holds what the logs say')
    add_force(parser)
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    import sys
    from pathlib import Path

    from hgd_det.checkpoint import trust_checkpoints
    from hgd_det.errors import UserError
    from hgd_det.report.page import write_report

    if Path(args.out).suffix not in ('.html', '.htm') or Path(args.out).is_dir():
        raise UserError(f'--out {args.out}: give a file whose name ends in .html')
    if not 0 <= args.score <= 1:
        raise UserError(f'--score {args.score:g}: a score lies between 0 and 1')
    trust_checkpoints(args.trust_checkpoint)
    out = write_report(args.folders, args.out, images=args.images, models=not args.no_models,
                       score=args.score, bench=args.bench, title=args.title, force=args.force,
                       say=lambda text: print(f'{text} ...', file=sys.stderr))
    print(f'written to {out} ({out.stat().st_size / 1e6:.1f} MB)')
    return 0
