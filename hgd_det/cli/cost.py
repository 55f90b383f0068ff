"""Measure what a training step costs under several configs or methods: time and memory, side by side.

A pair of detectors is measured under each method, another config as it is. Each takes steps on one batch
of its own training set, spread evenly over its training, in turns with the others; on the CPU. Loading data
is not timed. Generations are trained one after another: their times add up, and the largest tells the
memory. Give a quiet machine to it.
"""

from __future__ import annotations

import argparse

from hgd_det.cli._common import add_force

COLUMNS = ('config', 'method', 'step_ms', 'step_ratio', 'memory_mb', 'memory_ratio', 'phases', 'batch',
           'repeat', 'threads', 'load', 'commit', 'device', 'torch', 'mmdet', 'python')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('configs', metavar='CONFIG', nargs='+',
                        help='configs to measure, or pairs; those that train nothing are left out')
    parser.add_argument('--method', metavar='METHOD', nargs='+', default=[],
                        help='methods of the pairs, as hgd logit_kd hgd+logit_kd')
    parser.add_argument('--reference', metavar='CONFIG', nargs='+', default=['shapes', 'hgd'],
                        help='what the ratios refer to, a config or a pair and its method; it is measured '
                             'too (shapes hgd)')
    parser.add_argument('--repeat', type=int, default=30, metavar='N', help='steps of each config (30)')
    parser.add_argument('--threads', type=int, default=1, metavar='N', help='CPU threads (1)')
    parser.add_argument('--csv', metavar='OUT', help='also write the rows, as in results/cost.csv')
    parser.add_argument('--cfg-options', metavar='KEY=VALUE', nargs='+', action='extend', default=[],
                        help='change every config, as in train_dataloader.batch_size=8')
    add_force(parser)


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
    from hgd_det.outputs import keep_originals, named_files

    for name, value in (('--repeat', args.repeat), ('--threads', args.threads)):
        if value < 1:
            raise UserError(f'{name} {value}: give 1 or more')

    def say(text: str) -> None:
        print(f'{text} ...', file=sys.stderr)

    with contextlib.redirect_stdout(sys.stderr):    # what libraries say is no part of the table
        named = _named(args)
        configs = {key: load_config(key[0], args.cfg_options, key[1]) for key in dict.fromkeys(named)}
        if args.csv:
            read = [[path for path, _ in configs], [cfg.to_dict() for cfg in configs.values()]]
            keep_originals([args.csv], named_files(read), force=args.force)
        for key in [key for key, cfg in configs.items() if not cfg.get('train_dataloader')]:
            say(f'left out: {" ".join(key).strip()}, which trains nothing')
            del configs[key]
        if named[0] not in configs:
            raise UserError(f'--reference {" ".join(args.reference)} trains nothing; give another config')
        trainings = {key: list(each(cfg)) if 'generations' in cfg else [cfg] for key, cfg in configs.items()}
        before = torch.get_num_threads()
        torch.set_num_threads(args.threads)
        try:
            found = iter(measure([one for several in trainings.values() for one in several],
                                 args.repeat, say=say))
        finally:
            torch.set_num_threads(before)
    rows = _rows(configs, [_together([next(found) for _ in several]) for several in trainings.values()], args)
    shown = ('config', 'method', 'step_ms', 'step_ratio', 'memory_mb', 'memory_ratio', 'phases')
    print(plain([shown, *([row[key] for key in shown] for row in rows)], left=('config', 'method', 'phases')))
    if args.csv:
        atomic_write(as_csv(rows, COLUMNS), args.csv)
        print(f'written to {args.csv}')
    return 0


def _named(args: argparse.Namespace) -> list[tuple[str, str]]:
    """(config, method) of what is measured, the reference first."""
    from hgd_det.errors import UserError
    from hgd_det.paths import read_config

    if len(args.reference) > 2:
        raise UserError(f'--reference {" ".join(args.reference)}: give a config, or a pair and its method')
    named = [(args.reference[0], ''.join(args.reference[1:]))]
    for config in args.configs:
        model = read_config(config).get('model') or {}
        bare = model.get('type') == 'Distiller' and not model.get('terms')
        if bare and not args.method:
            raise UserError(f'{config} is a pair of detectors; say with --method how one teaches the other')
        named += [(config, method) for method in (args.method if bare else [''])]
    return named


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
    return [dict(config=config, method=method, step_ms=f'{each["step_ms"]:.1f}',
                 step_ratio=f'{each["step_ms"] / first["step_ms"]:.3f}',
                 memory_mb=f'{each["memory_mb"]:.0f}',
                 memory_ratio=f'{each["memory_mb"] / first["memory_mb"]:.3f}',
                 phases=each['phases'],
                 batch=str(cfg.train_dataloader.batch_size)) | machine
            for ((config, method), cfg), each in zip(configs.items(), found, strict=True)]
