"""Run every cell of the HGD paper's tables and print our numbers beside the paper's.

A cell is a pair of detectors with a method, its options and a seed. It trains in a process and a folder of
its own; when it is done, its row is added to results/SCALE.csv, of the checkout or, without one, of the
working folder. Rows that are there already count and are not run again. Stopped or killed at any moment,
the same command goes on where it was.
"""
from __future__ import annotations

import argparse

from hgd_det.cli._common import at_least, folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('tables', metavar='TABLE', nargs='+',
                        help='1 to 6, the tables of the paper, or "methods": every method of the scale')
    parser.add_argument('--scale', choices=['voc', 'coco', 'shapes', 'bccd'],
                        help="which configs (default: the paper's, voc; coco for Table 6)")
    parser.add_argument('--seeds', metavar='N', default='3',
                        help='how many, from 0, or a list with commas, as 0,4 or 7, (default: 3)')
    parser.add_argument('--work-dir', metavar='DIR', type=folder, default='work_dirs/reproduce',
                        help='where the cells train (%(default)s)')
    parser.add_argument('--results', metavar='FILE', help='default: results/SCALE.csv')
    parser.add_argument('--jobs', type=at_least(1), metavar='N',
                        help='cells at a time (default: one for each GPU; 1 on a CPU)')
    parser.add_argument('--gpus-per-cell', type=at_least(1), default=1, metavar='K',
                        help='train each cell on K GPUs, which share the batch of its config (1)')
    parser.add_argument('--again', action='store_true',
                        help='measure anew what a row of another commit tells, and replace that row')
    parser.add_argument('--dry-run', action='store_true', help='say what would be run, and print the tables')
    parser.add_argument('--cfg-options', metavar='KEY=VALUE', nargs='+', action='extend', default=[],
                        help='change every cell, teachers too; its row tells it, and only such rows count')


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from hgd_det.experiments import comparison, results
    from hgd_det.experiments.reproduce import Matrix, costs, plan, reproduce, room
    from hgd_det.experiments.tables import table

    seeds = _seeds(args.seeds)
    tables = [table(name, args.scale) for name in dict.fromkeys(args.tables)]
    where, extra, status = room(args.jobs, args.gpus_per_cell), ' '.join(args.cfg_options), 0
    files = {}
    for scale in dict.fromkeys(each.scale for each in tables):
        files[scale] = Path(args.results or results.FOLDER / f'{scale}.csv')
        matrix = Matrix([each for each in tables if each.scale == scale], seeds, Path(args.work_dir),
                        files[scale], where, extra=extra, again=args.again)
        if args.dry_run:
            print(plan(matrix))
        else:
            status |= reproduce(matrix)
    for each in tables:
        print(f'\n{comparison.show(each, results.read(files[each.scale]), extra, costs(each))}')
    return status


def _seeds(text: str) -> list[int]:
    from hgd_det.errors import UserError

    listed = ',' in text
    try:
        seeds = [int(part) for part in text.split(',') if part.strip()] if listed else list(range(int(text)))
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0:
        raise UserError(f'--seeds {text}: give how many (3 is 0, 1, 2) or a list with commas (0,4 or 7,)')
    return list(dict.fromkeys(seeds))
