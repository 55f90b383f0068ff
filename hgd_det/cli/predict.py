"""Find objects in images, folders or videos: drawn pictures and predictions as COCO's JSON."""

from __future__ import annotations

import argparse

from hgd_det.cli._common import add_force, add_trust


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('model', metavar='MODEL',
                        help='a checkpoint of a run, or an exported .pth .safetensors .onnx .pt2')
    parser.add_argument('images', metavar='IMAGES', nargs='+',
                        help='images, folders of images, videos (.mp4 .avi .mov .mkv)')
    parser.add_argument('--out', metavar='DIR', required=True,
                        help='where the pictures and predictions.json go')
    parser.add_argument('--config', metavar='CONFIG',
                        help='for a checkpoint that does not hold its config')
    parser.add_argument('--cfg-options', metavar='KEY=VALUE', nargs='+', action='extend', default=[],
                        help="change a checkpoint's config, as in model.test_cfg.score_thr=0.01")
    parser.add_argument('--score', type=float, default=0.3, metavar='S',
                        help='leave out what scores less (0.3)')
    parser.add_argument('--batch-size', type=int, default=8, metavar='N', help='images per step (8)')
    parser.add_argument('--threads', type=int, metavar='N', help='CPU threads of the model')
    add_force(parser)
    add_trust(parser)
    parser.add_argument('--no-pictures', action='store_true', help='write predictions.json alone')


def run(args: argparse.Namespace) -> int:
    import sys
    import time
    from pathlib import Path

    from hgd_det.deploy.predict import RESULT, places, predict
    from hgd_det.deploy.sources import check_places, collect
    from hgd_det.outputs import named_files

    _check(args)
    sources = collect(args.images, args.out)
    check_places(sources, places(sources, args.out, not args.no_pictures),
                 list(named_files([args.model, args.config])), force=args.force)
    model = _model(args)
    started = time.monotonic()
    report = predict(model, sources, args.out, score=args.score, batch_size=args.batch_size,
                     draw=not args.no_pictures, force=args.force)
    seconds = time.monotonic() - started
    print(f'{len(report.images)} images in {seconds:.1f} s, {len(report.annotations)} boxes with score '
          f'>= {args.score:g}: {Path(args.out, RESULT)}')
    if report.skipped:
        print(f'{len(report.skipped)} of {len(sources)} files could not be read:', file=sys.stderr)
        for source, why in report.skipped:
            print(f'  {source.path}: {why}', file=sys.stderr)
    return 1 if report.skipped else 0


def _check(args: argparse.Namespace) -> None:
    from pathlib import Path

    from hgd_det.errors import UserError

    if not 0 <= args.score <= 1:
        raise UserError(f'--score {args.score:g}: a score lies between 0 and 1')
    if args.batch_size < 1:
        raise UserError(f'--batch-size {args.batch_size}: give 1 or more')
    if args.threads is not None and args.threads < 1:
        raise UserError(f'--threads {args.threads}: give 1 or more')
    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise UserError(f'--out {args.out} is a file; give a folder')
    if Path(args.model).suffix in ('.onnx', '.pt2') and (args.config or args.cfg_options):
        raise UserError(f'{args.model} is a finished program that no config changes; --config and '
                        '--cfg-options are for checkpoints')


def _model(args: argparse.Namespace):
    from hgd_det.checkpoint import trust_checkpoints
    from hgd_det.deploy.runtime import open_model

    trust_checkpoints(args.trust_checkpoint)
    return open_model(args.model, args.config, args.cfg_options, args.threads)
