"""Show what a config builds: parameters, multiply-adds, feature maps, who imitates whom."""

from __future__ import annotations

import argparse

from hgd_det.cli._common import add_config, add_force, json_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser)
    parser.add_argument('--json', metavar='OUT', nargs='?', const='-', type=json_file,
                        help='as JSON, to this file or, without a name, instead of the text')
    add_force(parser)


def run(args: argparse.Namespace) -> int:
    import contextlib
    import json
    import sys

    from hgd_det.checkpoint import atomic_write
    from hgd_det.engine.runner import load_config
    from hgd_det.outputs import keep_originals, named_files

    with contextlib.redirect_stdout(sys.stderr):  # what libraries say must not get into the JSON
        cfg = load_config(args.config, args.cfg_options, args.method)
        if args.json not in (None, '-'):
            keep_originals([args.json], named_files([str(args.config), cfg.to_dict()]), force=args.force)
        facts = {'config': ' '.join(filter(None, (args.config, args.method))), **describe(cfg)}
    text = json.dumps(facts, indent=2, default=str)
    if args.json == '-':
        print(text)
        return 0
    print(show(facts))
    if args.json:
        atomic_write(text + '\n', args.json)
    return 0


def describe(cfg) -> dict:
    """The facts as plain values. No checkpoint is read: weights do not matter here."""
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    import hgd_det.registered  # noqa: F401
    from hgd_det.engine.mistakes import need_model, user_errors

    need_model(cfg)
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    size = input_size(cfg)
    with user_errors():
        model = MODELS.build(cfg.model)
    facts = {'input_size': list(size), 'student': _cost(getattr(model, 'student', model), size),
             'teacher': None}
    teachers = {name: _cost(teacher.detector, teacher.input_size or size)
                | {'config': teacher.name, 'checkpoint': teacher.checkpoint}
                for name, teacher in getattr(model, 'teachers', {}).items()}
    facts |= teachers if set(teachers) <= {'teacher'} else {'teachers': teachers}
    if hasattr(model, 'describe'):  # a distiller: pairs and terms
        for detector in (model.student, *(teacher.detector for teacher in model.teachers.values())):
            _draw(detector)
        facts |= model.describe()
    return facts


def _draw(detector) -> None:
    """Kaiming weights, whatever the config would load: under PyTorch's own small ones a deep plain
    network lets nothing through, and the shares of the stages could not be told.
    """
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for module in detector.modules() if detector is not None else ():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif type(module).__name__ == 'L2Norm':  # mmdet leaves it uninitialised memory until then
                nn.init.constant_(module.weight, module.scale)


def input_size(cfg) -> tuple[int, int]:
    """Height and width: the config's `input_size`, or what its test pipeline resizes to."""
    from hgd_det.deploy.student import nominal_size
    from hgd_det.errors import UserError

    if size := nominal_size(cfg):
        return size
    raise UserError('the config does not say how large its images are; give the side, or [height,width], '
                    'with --cfg-options input_size=300')


def _cost(detector, size) -> dict:
    from hgd_det.models.complexity import count

    params, macs, maps = count(detector, tuple(size))
    return {'params': params, 'macs': macs,
            'maps': [{'name': name, 'channels': channels, 'size': [height, width]}
                     for name, channels, height, width in maps]}


def show(facts: dict) -> str:
    height, width = facts['input_size']
    lines = [f'{facts["config"]}, input {height}x{width}']
    costs = {who: facts.get(who) for who in ('student', 'teacher')}
    costs |= {f'teacher {name}': cost for name, cost in facts.get('teachers', {}).items()}
    for who, cost in costs.items():
        if cost:
            lines.append(f'{who}: {cost["params"]:,} parameters, {cost["macs"] / 1e9:.2f} G '
                         'multiply-adds')
            lines += [f'  {each["name"]:<10} {each["channels"]:>5} x {each["size"][0]} x {each["size"][1]}'
                      for each in cost['maps']]
    for name, term in facts.get('terms', {}).items():
        weight = term['schedule']['weight']
        whose = f', learns from {term["teacher"]}' if 'teachers' in facts and term['teacher'] else ''
        lines.append(f'{name}: {term["type"]}, weight {weight}, needs {", ".join(term["needs"])}{whose}')
        lines += _table(term.get('pairs') or [])
    return '\n'.join(lines)


def _table(pairs: list[dict]) -> list[str]:
    """Who imitates whom; the share is the stage's part of the term before training, on noise."""
    if not pairs:
        return []
    rows = [('stage', 'student', 'teacher', 'adapter', 'share')]
    for pair in pairs:
        size = 'x'.join(map(str, pair['size']))
        mine, theirs = (f'{tap} ({channels})' for tap, channels in
                        zip((pair['student'], pair['teacher']), pair['channels'], strict=True))
        share = pair.get('share')
        rows.append((size, mine, theirs, pair.get('adapter', ''),
                     '' if share is None else f'{100 * share:.1f}%'))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return ['  ' + '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows]
