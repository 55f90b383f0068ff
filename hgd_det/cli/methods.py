"""List the distillation terms, or explain one: its formula, options and methods."""

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
    used = _methods()
    found = []
    for name, term in sorted(TERMS.module_dict.items()):
        doc = inspect.getdoc(term) or ''
        options = {key: value.default for key, value in inspect.signature(term).parameters.items()}
        found.append(dict(
            name=name, summary=doc.partition('\n')[0], needs=sorted(term.needs),
            schedule=dict(term.schedule), options={k: _plain(v) for k, v in options.items()},
            methods=used.get(name, []), doc=doc))
    return found


def _plain(value):
    return value if isinstance(value, (str, int, float, bool, type(None), list, tuple)) else repr(value)


def _methods() -> dict[str, list[str]]:
    """Of each term, by its type, the methods in `configs/methods` that have it: those with least beside it
    first."""
    from hgd_det.paths import find_method, names, read_config
    kinds: dict[str, list] = {}
    for method in names('methods'):
        types = {term.type for term in read_config(find_method(method)).terms.values()}
        for kind in types:
            kinds.setdefault(kind, []).append((len(types), method))
    return {kind: [name for _, name in sorted(entries)] for kind, entries in kinds.items()}


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
    """Two lines per term: what it teaches; what it reads and the method that is little else."""
    width = max(len(each['name']) for each in found)
    lines = []
    for each in found:
        method = f'--method {each["methods"][0]}' if each['methods'] else 'in no method'
        lines += [f'{each["name"]:<{width}}  {each["summary"]}',
                  f'{"":<{width}}  reads {", ".join(each["needs"])}; {method}']
    return '\n'.join([*lines, '', 'hgd-det methods NAME prints its formula.'])


def _explain(term: dict) -> str:
    schedule = ', '.join(f'{key}={value}' for key, value in term['schedule'].items())
    return '\n'.join([term['name'], '', term['doc'], '', f'Reads: {", ".join(term["needs"])}',
                      f'Schedule unless told otherwise: {schedule or "weight=1.0"}',
                      *(f'Method: hgd-det train PAIR --method {name}' for name in term['methods'])])
