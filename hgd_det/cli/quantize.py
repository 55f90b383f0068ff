"""Turn an exported ONNX file into INT8, calibrated on images."""

from __future__ import annotations

import argparse

from hgd_det.cli._common import add_force


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('model', metavar='MODEL.onnx', help='a file of `hgd-det export`, with or without NMS')
    parser.add_argument('out', metavar='OUT.onnx', help='where the INT8 form goes')
    parser.add_argument('--images', nargs='+', required=True, metavar='PATH',
                        help='images, or folders of them, such as the model was trained on; not those '
                             'it is tested on')
    parser.add_argument('--limit', type=int, default=200, metavar='N',
                        help='take at most so many, spread evenly (200)')
    add_force(parser)


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from hgd_det.deploy.quantize import quantize
    from hgd_det.deploy.samples import samples

    meta = quantize(args.model, args.out, samples(args.images, args.limit), args.limit,
                    args.force)
    before, after = (Path(path).stat().st_size / 1e6 for path in (args.model, args.out))
    print(f'{args.out}  {after:.2f} MB (of {before:.2f}), calibrated on {meta["int8"]["images"]} images')
    return 0
