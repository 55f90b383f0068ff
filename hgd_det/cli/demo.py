"""See distillation work on a laptop, from drawing a data set to a finished report, without a network.

Seven phases: draw shapes, train the tiny teacher, the student alone and the student with HGD, export, time,
report. Stopped or killed at any moment, the same command goes on where it was.
"""
from __future__ import annotations

import argparse

from hgd_det.cli._common import at_least, folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--steps', type=at_least(1), default=500, metavar='N',
                        help='of each training (%(default)s, those of results/shapes.csv)')
    parser.add_argument('--seed', type=at_least(0), default=0, metavar='N',
                        help='of both students (0); the teacher is that of seed 0')
    parser.add_argument('--images', type=at_least(6), default=3000, metavar='N',
                        help='training images (%(default)s), and a sixth of that to test on')
    parser.add_argument('--work-dir', metavar='DIR', type=folder, default='work_dirs/demo',
                        help='where everything goes (%(default)s)')
    parser.add_argument('--cfg-options', metavar='KEY=VALUE', nargs='+', action='extend', default=[],
                        help='change the three trainings, as in train_dataloader.batch_size=16')


def run(args: argparse.Namespace) -> int:
    from hgd_det.experiments.demo import Settings, demo

    print(demo(args.work_dir, Settings(args.seed, args.steps, args.images, tuple(args.cfg_options))))
    return 0
