"""List the distillation terms, or explain one: its formula, options and configs."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('name', metavar='NAME', nargs='?', help='a term, in any case: hgd, softloss')
    parser.add_argument('--json', action='store_true', help='as JSON')


def run(args: argparse.Namespace) -> int:
    import contextlib
    import json
    import sys

    with contextlib.redirect_stdout(sys.stderr):    # what libraries say must not get into the JSON
        found = describe()
    if args.name:
        found = [_pick(found, args.name)]
    if args.json:
        print(json.dumps(found, indent=2))
    elif args.name:
        print(_explain(found[0]))
    else:
        print(_table(found))
    return 0


def describe() -> list[dict]:
    """Every registered term: what it teaches, what it reads, where it is used, its whole docstring."""
    import inspect

    import hgd_det.registered  # noqa: F401
    from hgd_det.distill.registry import TERMS
    used = _configs()
    found = []
    for name, term in sorted(TERMS.module_dict.items()):
        doc = inspect.getdoc(term) or ''
        options = {key: value.default for key, value in inspect.signature(term).parameters.items()}
        found.append(dict(
            name=name, summary=doc.partition('\n')[0], needs=sorted(term.needs),
            schedule=dict(term.schedule), options={k: _plain(v) for k, v in options.items()},
            configs=used.get(name, []), doc=doc))
    return found


def _plain(value):
    return value if isinstance(value, (str, int, float, bool, type(None), list, tuple)) else repr(value)


def _configs() -> dict[str, list[str]]:
    """The configs that use a term, by its type: those with least beside it first, small before large.

    Read as text: a config of the project names a term as ``type='HGD'``, in its own lines or a base's.
    """
    import re

    from hgd_det.distill.registry import TERMS
    from hgd_det.paths import ROOT
    kinds = {}
    for path in sorted((ROOT / 'configs').rglob('*.py')):
        if '_base_' not in path.parts and 'ablation' not in path.parts:
            named = set(re.findall(r"type='(\w+)'", path.read_text())) & set(TERMS.module_dict)
            for name in named:
                place = path.relative_to(ROOT).as_posix()
                kinds.setdefault(name, []).append((len(named), '/shapes/' not in place, place))
    return {name: [path for *_, path in sorted(entries)] for name, entries in kinds.items()}


def _pick(found: list[dict], name: str) -> dict:
    import difflib

    from hgd_det.errors import UserError
    by_name = {each['name'].lower(): each for each in found}
    key = name.lower().replace('-', '').replace('_', '')
    if key not in by_name:
        near = [by_name[n]['name'] for n in difflib.get_close_matches(key, by_name, n=2, cutoff=0.5)]
        raise UserError(f'there is no term {name!r}; '
                        + (f'did you mean {" or ".join(near)}?' if near else
                           f'there are {", ".join(each["name"] for each in found)}'))
    return by_name[key]


def _table(found: list[dict]) -> str:
    """Two lines per term: what it teaches; what it reads and the smallest config that uses it."""
    width = max(len(each['name']) for each in found)
    lines = []
    for each in found:
        config = each['configs'][0] if each['configs'] else 'no config'
        lines += [f'{each["name"]:<{width}}  {each["summary"]}',
                  f'{"":<{width}}  reads {", ".join(each["needs"])}; {config}']
    return '\n'.join([*lines, '', 'hgd-det methods NAME prints its formula.'])


def _explain(term: dict) -> str:
    schedule = ', '.join(f'{key}={value}' for key, value in term['schedule'].items())
    return '\n'.join([term['name'], '', term['doc'], '', f'Reads: {", ".join(term["needs"])}',
                      f'Schedule unless told otherwise: {schedule or "weight=1.0"}',
                      *(f'Config: {path}' for path in term['configs'])])
