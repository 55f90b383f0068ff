"""Arguments that several verbs share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path


def at_least(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from `least` up."""
    def whole(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f'{text}: give {least} or more')
        return int(text)

    whole.__name__ = 'int'  # argparse names it where the text is no number
    return whole


def json_file(text: str) -> str:
    """The type of an argument that names a JSON file to write: known to be one before anything slow."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f'{text} is a folder; give a file')
    if path.exists() and path.suffix != '.json':
        raise argparse.ArgumentTypeError(f'{text} exists and is no .json file; it will not be overwritten')
    return text


def folder(text: str) -> str:
    """The type of an argument that names a folder to write to."""
    if Path(text).exists() and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f'{text} is a file; give a folder')
    return text


def add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--force', action='store_true',
                        help='write over what exists; never over what the command reads, nor over the files '
                             'of a training')


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', metavar='CONFIG',
                        help='path of a config, from the working folder or from the project, or the name '
                             'of a pair of detectors in configs/pairs')
    add_method(parser)
    parser.add_argument('--cfg-options', metavar='KEY=VALUE', nargs='+', action='extend',
                        default=[],
                        help='change the config, as in model.bbox_head.num_classes=3 or '
                             'train_dataloader.batch_size=8; lists as "[a,b]"')


def add_method(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--method', metavar='METHOD',
                        help='how the teacher of a pair teaches: a name in configs/methods, several as '
                             'hgd+logit_kd, or a file of your own')


def add_run(parser: argparse.ArgumentParser, what: str = 'logs and checkpoints go (default: work_dirs'
            ) -> None:
    parser.add_argument('--work-dir', metavar='DIR', type=folder, help=f'where {what}/CONFIG/METHOD)')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='what started a data-parallel job (torchrun: pytorch)')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    add_trust(parser)


def add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--trust-checkpoint', action='store_true',
                        help='load checkpoints that hold more than weights and plain values. Such '
                             'a file can run any program: only for files of your own')


def configure(args: argparse.Namespace, trains: bool = True):
    """The config that `add_config` and `add_run` describe. What does not train has a folder of its own, never
    the one where the config is trained."""
    from hgd_det.checkpoint import trust_checkpoints
    from hgd_det.engine.runner import TESTS, default_work_dir, load_config
    from hgd_det.paths import find_config

    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))  # old launchers give it as argument
    trust_checkpoints(args.trust_checkpoint)
    cfg = load_config(args.config, args.cfg_options, args.method)
    cfg.launcher = args.launcher
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif not trains:
        cfg.work_dir = str(default_work_dir(find_config(args.config), args.method, TESTS))
    return cfg
