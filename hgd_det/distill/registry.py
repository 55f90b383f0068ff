"""The registry of terms, and how a config's entry becomes one.

A term of your own registers here too (docs/your_term.md).
"""
from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping

from mmengine.registry import Registry

from hgd_det.distill.schedule import Schedule
from hgd_det.errors import UserError

TERMS = Registry('term', locations=['hgd_det.distill.terms'])


def split_entry(name: str, config: dict) -> tuple[dict, Schedule]:
    """A term's config into its own arguments and its schedule."""
    if not isinstance(config, Mapping) or 'type' not in config:
        raise UserError(f"term {name!r} is {config!r}; write dict(type='HGD', weight=..., ...)")
    if not name.isidentifier():
        raise UserError(f'term name {name!r} must be a plain word: it becomes part of the log\'s keys')
    kind = TERMS.module_dict.get(config['type'])
    if kind is None:
        known = sorted(TERMS.module_dict)
        near = difflib.get_close_matches(str(config['type']), known, n=1, cutoff=0.4)
        raise UserError(f'term {name!r}: there is no {config["type"]!r}'
                        + (f'; did you mean {near[0]!r}?' if near else '')
                        + f' Known: {", ".join(known)}')
    rest = dict(config)
    given = {k: rest.pop(k) for k in Schedule.KEYS if k in rest}
    return rest, Schedule(**{**kind.schedule, **given})


def build_term(name: str, config: dict):
    """A term from its own arguments; unknown ones are refused with what it does accept."""
    kind = TERMS.module_dict[config['type']]
    options = {k: v for k, v in config.items() if k != 'type'}
    accepted = [k for k in inspect.signature(kind).parameters if k != 'self']
    wrong = [k for k in options if k not in accepted]
    if wrong:
        near = difflib.get_close_matches(wrong[0], [*accepted, *Schedule.KEYS], n=1)
        raise UserError(f"term {name!r}: {config['type']} has no option {wrong[0]!r}"
                        + (f'; did you mean {near[0]!r}?' if near else '')
                        + f" It takes {', '.join(accepted) or 'none'}; and {', '.join(Schedule.KEYS)}")
    return kind(**options)
