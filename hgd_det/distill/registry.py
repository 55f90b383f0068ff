"""The registry of terms, and how a config's entry becomes one.

A term of your own registers here too (docs/your_term.md).
"""
from __future__ import annotations

from collections.abc import Mapping

from mmengine.registry import Registry

from hgd_det.distill import options
from hgd_det.distill.schedule import Schedule
from hgd_det.distill.term import check_declared
from hgd_det.errors import UserError, near


class Terms(Registry):
    """Tells each term the name it is registered under: that is what it calls itself in messages."""

    def _register_module(self, module, module_name=None, force=False) -> None:
        super()._register_module(module, module_name, force)
        if module_name is not None:
            module.title = module_name if isinstance(module_name, str) else module_name[0]


TERMS = Terms('term', locations=['hgd_det.distill.terms'])


def split_entry(name: str, config: dict) -> tuple[dict, Schedule]:
    """A term's config into its own arguments and its schedule."""
    if not isinstance(config, Mapping) or not isinstance(config.get('type'), str):
        raise UserError(f"term {name!r} is {config!r}; write dict(type='HGD', weight=..., ...)")
    if not str(name).isidentifier():
        raise UserError(f'term name {name!r} must be a plain word: it becomes part of the log\'s keys')
    kind = TERMS.module_dict.get(config['type'])
    if kind is None:
        known = sorted(TERMS.module_dict)
        meant = near(config['type'], known, 1, 0.4)
        raise UserError(f'term {name!r}: there is no {config["type"]!r}'
                        + (f'; did you mean {meant[0]!r}?' if meant else '.')
                        + f' Known: {", ".join(known)}')
    rest = dict(config)
    given = {**kind.schedule, **{k: rest.pop(k) for k in Schedule.KEYS if k in rest}}
    options.check(f'term {name!r}', Schedule, given)
    try:
        return rest, Schedule(**given)
    except UserError as error:
        raise UserError(f'term {name!r}: {error}') from None


def build_term(name: str, config: dict):
    """A term from its own arguments; unknown ones are refused with what it does accept."""
    kind = TERMS.module_dict[config['type']]
    given = {k: v for k, v in config.items() if k != 'type'}
    options.check(f"term {name!r}: {config['type']}", kind, given, Schedule.KEYS)
    term = kind(**given)
    check_declared(name, term)
    return term
