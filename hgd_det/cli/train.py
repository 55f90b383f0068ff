"""Train the detector or the distillation that a config describes."""

from __future__ import annotations

import argparse
import sys

from hgd_det.cli._common import add_config, add_run, at_least, configure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    add_run(parser)
    parser.add_argument('--resume', metavar='CHECKPOINT', nargs='?', const='auto',
                        help='go on from this checkpoint, or, without a name, from the newest '
                             'intact one in the work directory (a new run if there is none)')
    parser.add_argument('--anew', action='store_true',
                        help='begin again where a training lies already: its folder is kept, with a '
                             'number behind its name')
    parser.add_argument('--amp', nargs='?', const='fp16', choices=('bf16', 'fp16'),
                        help='automatic mixed precision: fp16 (without a name), on a GPU; bf16 anywhere, '
                             'and without waiting for a scale')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate with the total batch size')
    parser.add_argument('--seed', type=at_least(0), metavar='N',
                        help="default: the config's, or 0")
    parser.add_argument('--no-validate', action='store_true', help='no evaluation while training')


def run(args: argparse.Namespace) -> int:
    from hgd_det.training.generations import train
    from hgd_det.training.mistakes import user_errors
    from hgd_det.training.runner import orderly_end
    from hgd_det.training.signals import Interrupted, listening

    cfg = configure(args)
    _apply(cfg, args)
    status = 0
    with orderly_end():
        try:
            with listening(), user_errors():
                train(cfg, args.resume, args.anew)
        except SystemExit as stop:  # by a signal
            status = int(stop.code or 0)
            if isinstance(stop, Interrupted):
                print('stopped before training began', file=sys.stderr)
    return status


def _apply(cfg, args: argparse.Namespace) -> None:
    from mmengine.device import get_device

    from hgd_det.errors import UserError

    missing = [key for key in ('train_dataloader', 'train_cfg', 'optim_wrapper')
               if not cfg.get(key)]
    if missing:
        raise UserError(f'{args.config} cannot be trained: it has no {", ".join(missing)}')
    model = cfg.get('model') or {}
    if model.get('type') == 'Distiller' and not model.get('terms'):
        raise UserError(f'{args.config} is a pair of detectors and says nothing of how one teaches the '
                        'other; give a --method, as hgd-det methods lists them, or train the '
                        'student\'s own config')
    if args.amp == 'bf16':
        cfg.optim_wrapper.update(type='BFloat16OptimWrapper')
    elif args.amp:
        if get_device() == 'cpu':
            raise UserError('--amp needs a GPU, and none is visible; --amp bf16 trains on a CPU too')
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UserError(f'--auto-scale-lr: {args.config} does not say for which total batch '
                            'size its learning rate is meant; add '
                            'auto_scale_lr=dict(base_batch_size=N)')
        cfg.auto_scale_lr.enable = True
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        saver = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
        saver.pop('save_best', None)  # there is nothing to tell the best by
    randomness = dict(cfg.get('randomness') or {})
    seed = args.seed if args.seed is not None else randomness.get('seed')
    cfg.randomness = randomness | {'seed': 0 if seed is None else seed}
