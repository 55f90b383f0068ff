"""What is known of the distillation terms: their needs, options, formulas, and the methods that have them."""
from __future__ import annotations

import contextlib
import inspect
import re
import sys

from hgd_det.errors import UserError, near
from hgd_det.paths import find_method, names, read_config


def describe() -> list[dict]:
    """Every registered term: what it teaches, what it reads, its options, where it is used, its docstring."""
    with contextlib.redirect_stdout(sys.stderr):    # what libraries say must not get into JSON
        import hgd_det.registered  # noqa: F401
    from hgd_det.distill.head_term import HeadTerm
    from hgd_det.distill.registry import TERMS
    used = _methods()
    found = []
    for name, kind in sorted(TERMS.module_dict.items()):
        doc, page = inspect.getdoc(kind) or '', kind.__module__.rpartition('.')[2]
        methods = sorted(used.get(name, ()), key=lambda method, page=page: (method[1] != page, method))
        found.append(dict(
            name=name, summary=sentence(doc), needs=sorted(kind.needs), needs_teacher=kind.needs_teacher,
            anchors_alike=issubclass(kind, HeadTerm), schedule=dict(kind.schedule), options=_options(kind),
            methods=[method for _, method in methods], doc=doc))
    return found


def _options(kind: type) -> list[dict]:
    """The options that its class takes, and what of its schedule is its own: name, default, type."""
    from hgd_det.distill import options
    from hgd_det.distill.map_term import OPTIONS, MapTerm
    from hgd_det.distill.schedule import Schedule
    scheduled, kinds = options.parameters(Schedule)
    own = {'weight': scheduled['weight'].default, **kind.schedule}
    found = [(name, default, kinds.get(name)) for name, default in own.items()]
    accepted, kinds = options.parameters(kind)
    stages = {**OPTIONS, **kind.defaults} if issubclass(kind, MapTerm) else {}
    for name, parameter in sorted(accepted.items(), key=lambda item: item[0] in stages):   # its own first
        if name == 'adapter' and stages and not kind.adapts:
            continue
        given = parameter.default
        default = stages.get(name) if given is None else None if given is parameter.empty else given
        found.append((name, default, kinds.get(name)))
    return [dict(name=name, default=_plain(default), type=_type(hint, default))
            for name, default, hint in found]


def _type(hint, default) -> str:
    """In words; that None stands for a default of another kind is no part of it."""
    from hgd_det.distill.options import words
    if hint is None:
        return ''
    said = words(hint)
    return said if default is None else said.removesuffix(' or None')


def _plain(value):
    return value if isinstance(value, (str, int, float, bool, type(None), list, tuple)) else repr(value)


def _methods() -> dict[str, list[tuple[int, str]]]:
    """Of each term, by its type, the methods that have it, and how many terms each of them has."""
    kinds: dict[str, list] = {}
    for method in names('methods'):
        types = {term.type for term in read_config(find_method(method)).terms.values()}
        for kind in types:
            kinds.setdefault(kind, []).append((len(types), method))
    return kinds


def sentence(text: str) -> str:
    """The first one, on one line."""
    text = ' '.join(text.partition('\n\n')[0].split())
    return re.match(r'.*?\.(?= [A-Z]|$)|.*', text)[0]


def pick(found: list[dict], name: str) -> dict:
    by_name = {each['name'].lower(): each for each in found}
    key = name.lower().replace('-', '').replace('_', '')
    if key not in by_name:
        meant = [by_name[each]['name'] for each in near(key, by_name, 2, 0.5)]
        raise UserError(f'there is no term {name!r}; '
                        + (f'did you mean {" or ".join(meant)}?' if meant else
                           f'there are {", ".join(each["name"] for each in found)}'))
    return by_name[key]


def listing(found: list[dict]) -> str:
    """Two lines per term: what it teaches; what it reads and the method that is little else."""
    width = max(len(each['name']) for each in found)
    lines = []
    for each in found:
        method = f'--method {each["methods"][0]}' if each['methods'] else 'in no method'
        lines += [f'{each["name"]:<{width}}  {each["summary"]}',
                  f'{"":<{width}}  reads {", ".join(each["needs"])}; {method}']
    return '\n'.join([*lines, '', 'hgd-det methods NAME prints its formula and options.'])


def explain(term: dict) -> str:
    width = max(len(option['name']) for option in term['options'])
    return '\n'.join([
        term['name'], '', term['doc'], '', f'Reads: {", ".join(term["needs"])}', 'Options:',
        *(f'  {option["name"]:<{width}} = {option["default"]!r}'
          + (f': {option["type"]}' if option['type'] else '') for option in term['options']),
        *(f'Method: hgd-det train PAIR --method {name}' for name in term['methods'])])
