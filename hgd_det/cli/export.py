"""Write a student without its teacher: weights, ONNX or torch.export, with a card; and verify it."""

from __future__ import annotations

import argparse

from hgd_det.cli._common import add_force, add_method, add_trust, at_least

FORMATS = ('pth', 'safetensors', 'onnx', 'torch')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', metavar='CONFIG',
                        help='the config of the training run, plain or distilling; "auto": the one '
                             'inside the checkpoint')
    parser.add_argument('checkpoint', metavar='CHECKPOINT',
                        help='any checkpoint of that run, also of its middle')
    parser.add_argument('out', metavar='OUT',
                        help='a folder, or a file whose suffix names the format: .pth .safetensors '
                             '.onnx .pt2')
    parser.add_argument('--cfg-options', metavar='KEY=VALUE', nargs='+', action='extend', default=[],
                        help='change the config, as in model.test_cfg.score_thr=0.3')
    add_method(parser)
    parser.add_argument('--peer', metavar='TERM',
                        help='instead of the student the detector that this term trained beside it (DML)')
    parser.add_argument('--format', nargs='+', choices=FORMATS, default=[],
                        help='several may be given (default: pth)')
    parser.add_argument('--with-nms', action='store_true',
                        help='ONNX: choose the detections inside the graph')
    parser.add_argument('--fp16', action='store_true',
                        help='float16 weights, and a network that computes in float16')
    parser.add_argument('--verify', metavar='DATA',
                        help="compare every form with the checkpoint on a folder's images, or on "
                             '"test", the test set of the config, then mAP too')
    parser.add_argument('--limit', type=at_least(1), metavar='N', default=50,
                        help='how many images of DATA are compared (50); mAP takes all')
    parser.add_argument('--bench', action='store_true',
                        help='time the forms beside the checkpoint (hgd-det bench does more)')
    add_force(parser)
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    import hgd_det.deploy.export as deploy
    from hgd_det.checkpoint import trust_checkpoints
    from hgd_det.deploy.student import load_student
    from hgd_det.errors import UserError

    if args.method and args.config == 'auto':
        raise UserError(f'--method {args.method}: the config inside a checkpoint has its method; give the '
                        'pair in place of "auto"')
    trust_checkpoints(args.trust_checkpoint)
    student = load_student(args.checkpoint, None if args.config == 'auto' else args.config,
                           args.cfg_options, args.peer, args.method)
    done = deploy.export(student, args.out, args.format, with_nms=args.with_nms, half=args.fp16,
                         force=args.force)
    for path in (*done.files.values(), done.config, done.card):
        print(f'{path}  {path.stat().st_size / 1e6:.2f} MB')
    failed = bool(args.verify) and not _verify(args, student, done)
    if args.bench:
        _bench(args, done)
    return 1 if failed else 0


def _verify(args, student, done) -> bool:
    """Print and note the comparison; whether everything is within its limits."""
    import sys

    import hgd_det.deploy.export as deploy
    from hgd_det.deploy.evaluate import evaluate
    from hgd_det.deploy.runtime import TorchModel, open_model
    from hgd_det.deploy.samples import samples
    from hgd_det.deploy.verify import compare, pictures_of, table

    reference, models = TorchModel(student), [open_model(path) for path in done.files.values()]
    images = pictures_of(student.config, args.limit) if args.verify == 'test' \
        else samples([args.verify], args.limit)
    rows = compare(reference, models, images, 'float16' if args.fp16 else 'float32')
    own = {}
    if args.verify == 'test':
        for row, model in zip(rows, models, strict=True):
            row.metrics = evaluate(model, student.config)
        own = {key: value for key, value in evaluate(reference, student.config).items()
               if key.count('/') == 1 and 'mAP' in key}
        done.facts['metrics'] = own
    print(table(rows, own))
    done.facts['verified'] = table(rows, own, markdown=True)
    deploy.write_card(done)
    for row in rows:
        if row.broken:
            print(f'{row.name} or the checkpoint puts out values that are not finite on {row.broken} of '
                  f'{row.images} images', file=sys.stderr)
        elif not row.holds:
            print(f'{row.name} is not the same network as the checkpoint: see the table',
                  file=sys.stderr)
    return all(row.holds for row in rows)


def _bench(args, done) -> None:
    from hgd_det.deploy.bench import bench
    from hgd_det.deploy.bench_table import table

    configs = {} if args.config == 'auto' else {args.checkpoint: args.config}
    beside = [] if args.peer else [args.checkpoint]  # of a checkpoint it times the student
    report = bench([*beside, *done.files.values()], configs, options=args.cfg_options,
                   batches=[1], trust=args.trust_checkpoint)
    print(table(report))
