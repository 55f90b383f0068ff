"""Measure what a training step costs under several configs: time and memory, relative to one of them.

Each config takes steps on one batch of its own training set, spread evenly over its training, in
turns with the others; on the CPU. Loading data is not timed. Generations are trained one after another:
their times add up, and the largest tells the memory. Give a quiet machine to it.
"""

from __future__ import annotations

import argparse

COLUMNS = ('config', 'step_ms', 'step_ratio', 'memory_mb', 'memory_ratio', 'phases', 'batch', 'repeat',
           'threads', 'load', 'commit', 'device', 'torch', 'mmdet', 'python')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('configs', metavar='CONFIG', nargs='+',
                        help='configs to measure; those that train nothing are left out')
    parser.add_argument('--reference', metavar='CONFIG', default='configs/shapes/hgd.py',
                        help='what the ratios refer to; it is measured too (configs/shapes/hgd.py)')
    parser.add_argument('--repeat', type=int, default=30, metavar='N', help='steps of each config (30)')
    parser.add_argument('--threads', type=int, default=1, metavar='N', help='CPU threads (1)')
    parser.add_argument('--csv', metavar='OUT', help='also write the rows, as in results/cost.csv')
    parser.add_argument('--cfg-options', metavar='KEY=VALUE', nargs='+', action='extend', default=[],
                        help='change every config, as in train_dataloader.batch_size=8')


def run(args: argparse.Namespace) -> int:
    import contextlib
    import sys

    import torch

    from hgd_det.checkpoint import atomic_write
    from hgd_det.deploy.tables import plain
    from hgd_det.engine.cost import measure
    from hgd_det.engine.generations import each
    from hgd_det.engine.runner import load_config
    from hgd_det.errors import UserError
    from hgd_det.experiments.results import as_csv

    for name, value in (('--repeat', args.repeat), ('--threads', args.threads)):
        if value < 1:
            raise UserError(f'{name} {value}: give 1 or more')

    def say(text: str) -> None:
        print(f'{text} ...', file=sys.stderr)

    with contextlib.redirect_stdout(sys.stderr):    # what libraries say is no part of the table
        configs = {path: load_config(path, args.cfg_options) for path in (args.reference, *args.configs)}
        for path in [path for path, cfg in configs.items() if not cfg.get('train_dataloader')]:
            say(f'left out: {path}, which trains nothing')
            del configs[path]
        if args.reference not in configs:
            raise UserError(f'--reference {args.reference} trains nothing; give another config')
        trainings = {path: list(each(cfg)) if 'generations' in cfg else [cfg]
                     for path, cfg in configs.items()}
        before = torch.get_num_threads()
        torch.set_num_threads(args.threads)
        try:
            found = iter(measure([one for several in trainings.values() for one in several],
                                 args.repeat, say=say))
        finally:
            torch.set_num_threads(before)
    rows = _rows(configs, [_together([next(found) for _ in several]) for several in trainings.values()], args)
    shown = ('config', 'step_ms', 'step_ratio', 'memory_mb', 'memory_ratio', 'phases')
    print(plain([shown, *([row[key] for key in shown] for row in rows)], left=('config', 'phases')))
    if args.csv:
        atomic_write(as_csv(rows, COLUMNS), args.csv)
        print(f'written to {args.csv}')
    return 0


def _together(found: list[dict]) -> dict:
    """Of one training what was found; of generations, what one step of each costs."""
    if len(found) == 1:
        return dict(found[0], phases=' '.join(f'{share:.0%}:{ms:.1f}' for share, ms in found[0]['phases']))
    return dict(step_ms=sum(one['step_ms'] for one in found),
                memory_mb=max(one['memory_mb'] for one in found),
                phases=' '.join(f'gen{number}:{one["step_ms"]:.1f}' for number, one in enumerate(found, 1)))


def _rows(configs: dict, found: list[dict], args: argparse.Namespace) -> list[dict[str, str]]:
    import os

    from hgd_det.experiments.results import measured_by

    first = found[0]
    machine = dict(repeat=str(args.repeat), threads=str(args.threads), load=f'{os.getloadavg()[0]:.1f}',
                   **measured_by())
    return [dict(config=path, step_ms=f'{each["step_ms"]:.1f}',
                 step_ratio=f'{each["step_ms"] / first["step_ms"]:.3f}',
                 memory_mb=f'{each["memory_mb"]:.0f}',
                 memory_ratio=f'{each["memory_mb"] / first["memory_mb"]:.3f}',
                 phases=each['phases'],
                 batch=str(cfg.train_dataloader.batch_size)) | machine
            for (path, cfg), each in zip(configs.items(), found, strict=True)]
