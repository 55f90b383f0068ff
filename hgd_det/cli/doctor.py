"""Examine a config before a long run: data, teacher, pairs, one step, memory and disk."""

from __future__ import annotations

import argparse

from hgd_det.cli._common import add_config, add_trust


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = 'Ends with status 1 if something would fail. Nothing is written.'
    add_config(parser)
    parser.add_argument('--images', metavar='N', type=int, default=64,
                        help='images to look at of each data set, and to test the teacher on (default: 64)')
    parser.add_argument('--json', action='store_true', help='as JSON')
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    import contextlib
    import dataclasses
    import json
    import sys

    from hgd_det.errors import UserError

    if args.images < 1:
        raise UserError(f'--images {args.images}: at least one must be looked at')
    found, out = [], sys.stdout
    with contextlib.redirect_stdout(sys.stderr):    # what libraries say must not get into the findings
        from hgd_det.checkpoint import trust_checkpoints
        from hgd_det.engine.doctor import examine
        from hgd_det.engine.runner import load_config
        trust_checkpoints(args.trust_checkpoint)
        cfg = load_config(args.config, args.cfg_options, args.method)
        missing = [key for key in ('train_dataloader', 'train_cfg', 'optim_wrapper') if not cfg.get(key)]
        if missing:
            raise UserError(f'{args.config} cannot be trained: it has no {", ".join(missing)}')
        for finding in examine(cfg, args.images):
            found.append(finding)
            if not args.json:
                print(f'{finding.level:<5} {finding.about}: {finding.text}', file=out, flush=True)
    counts = {level: sum(f.level == level for f in found) for level in ('ok', 'warn', 'fail')}
    if args.json:
        print(json.dumps([dataclasses.asdict(f) for f in found], indent=2))
    else:
        print(f"{counts['ok']} in order, {counts['warn']} to look at, {counts['fail']} would fail")
    return 1 if counts['fail'] else 0
