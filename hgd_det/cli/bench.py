"""Compare detectors side by side: latency, throughput, memory, size and, if wanted, mAP.

What is timed is the way from uint8 images that already have the model's input size to final
detections after NMS: normalisation, network, decoding, NMS. Reading and resizing images is not.
Checkpoints run mmdet's own code, exported files their runtime; all on the CPU.
"""

from __future__ import annotations

import argparse

from hgd_det.cli._common import add_force, add_trust, json_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('models', metavar='MODEL', nargs='+',
                        help='checkpoints (.pth .safetensors) and exported files (.onnx .pt2), of '
                             'teacher and student alike; speed is given relative to the first')
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 8], metavar='N',
                        help='images per call (1 8)')
    parser.add_argument('--threads', type=int, nargs='+', default=[], metavar='N',
                        help='CPU threads (1, and as many as there are cores)')
    parser.add_argument('--repeat', type=int, default=30, metavar='N', help='timed calls (30)')
    parser.add_argument('--warmup', type=int, default=5, metavar='N', help='calls before these (5)')
    parser.add_argument('--images', nargs='+', default=[], metavar='PATH',
                        help='images, or folders of them, to time on (default: noise, in which a '
                             'detector finds more or less than in images, and NMS takes as long)')
    parser.add_argument('--size', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'),
                        help='input size of models that take any')
    parser.add_argument('--map', metavar='CONFIG',
                        help='evaluate every model on the test set of this config')
    parser.add_argument('--config', nargs='+', default=[], metavar='CONFIG',
                        help='one for each checkpoint among the models, in their order; "auto": the '
                             'one inside the checkpoint (default for all)')
    parser.add_argument('--cfg-options', metavar='KEY=VALUE', nargs='+', action='extend', default=[],
                        help="change the checkpoints' configs, as in model.test_cfg.score_thr=0.3")
    parser.add_argument('--json', metavar='OUT', type=json_file,
                        help='also write everything, unrounded, with each call and the versions')
    parser.add_argument('--markdown', action='store_true', help='print the tables as Markdown')
    add_force(parser)
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    import json
    import sys

    from hgd_det.checkpoint import atomic_write, trust_checkpoints
    from hgd_det.deploy.bench import IMAGES, bench
    from hgd_det.deploy.bench_table import table
    from hgd_det.deploy.samples import samples
    from hgd_det.outputs import keep_originals, named_files

    trust_checkpoints(args.trust_checkpoint)
    if args.json:
        keep_originals([args.json], named_files([args.models, args.config, args.map]), force=args.force)
    report = bench(
        args.models, _configs(args), options=args.cfg_options, batches=args.batch, threads=args.threads,
        repeat=args.repeat, warmup=args.warmup, size=args.size and tuple(args.size),
        images=list(samples(args.images, IMAGES)) if args.images else (), map_config=args.map,
        trust=args.trust_checkpoint, say=lambda text: print(f'{text} ...', file=sys.stderr))
    print(table(report, args.markdown))
    if args.json:
        atomic_write(json.dumps(report, indent=2) + '\n', args.json)
        print(f'written to {args.json}')
    return 0


def _configs(args: argparse.Namespace) -> dict[str, str]:
    from hgd_det.errors import UserError

    checkpoints = [path for path in args.models if not path.endswith(('.onnx', '.pt2'))]
    if args.config and len(args.config) != len(checkpoints):
        raise UserError(f'--config: {len(args.config)} given for {len(checkpoints)} checkpoints; give one '
                        'for each, "auto" where the checkpoint holds its own')
    return {path: config for path, config in zip(checkpoints, args.config, strict=False)
            if config != 'auto'}
