"""List the distillation terms, or explain one: its formula, options and methods."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('name', metavar='NAME', nargs='?', help='a term, in any case: hgd, softloss')
    parser.add_argument('--json', action='store_true', help='as JSON')
    parser.add_argument('--write', metavar='PAGE', nargs='+', type=Path,
                        help="fill the documentation's tables: docs/methods.md docs/methods/*.md")


def run(args: argparse.Namespace) -> int:
    import json

    from hgd_det.experiments import method_pages, methods
    if args.write:
        print('\n'.join(map(str, method_pages.write(args.write))) or 'nothing to change')
        return 0
    found = methods.describe()
    if args.name:
        found = [methods.pick(found, args.name)]
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        print(methods.explain(found[0]) if args.name else methods.listing(found))
    return 0
