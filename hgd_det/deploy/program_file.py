"""Reads `torch.export` programs without giving them the machine.

A `.pt2` file is a program: besides the graph it may hold pickles and shared libraries, its shapes are
expressions that sympy evaluates as Python, and an operator may be any name below `torch` (`torch.hub.os`
among them). `torch.export.load` follows all of it. Here only what an exported detector consists of is let
in: raw weights, operators of ATen, arithmetic of shapes. What was examined is what torch is given: a new
archive of the members that were read.
"""
from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

import torch

from hgd_det.checkpoint import TRUST_HINT, check_archive, trusted
from hgd_det.errors import UserError

NOTE = 'hgd_det.json'
MEMBERS = re.compile(r'data/(weights/(weight_\d+|model_weights_config\.json)'
                     r'|constants/(tensor_\d+|model_constants_config\.json)|sample_inputs/model\.pt)'
                     rf'|models/model\.json|extra/{re.escape(NOTE)}'
                     r'|archive_(format|version)|\.data/(version|serialization_id)|byteorder|version')
# reading a file is the one thing that an operator of ATen can do besides computing
TARGETS = re.compile(r'torch\.ops\.aten\.(?!from_file)[a-z_]\w*(\.\w+)?|torch\.sym_\w+'
                     r'|_operator\.(getitem|add|sub|mul|floordiv|mod|neg|pow|truediv|eq|ne|[lg][et])')
SYMBOL = re.compile(r"Symbol\('\w+'(, (positive|nonnegative|integer)=True)*\)")
ARITHMETIC = re.compile(r'(\b(\d{1,18}|[su]\d+|FloorDiv|Mod|Max|Min|True|False)\b|[\s+/(),<>=-]|\*(?!\*))*')
CONTAINERS = ('builtins.tuple', 'builtins.list', 'builtins.dict', None)


def load(path: Path) -> tuple[torch.export.ExportedProgram, str]:
    """The program, and the note that the export put beside it ('' where there is none)."""
    extra = {NOTE: ''}
    source = path if trusted() else _examined(path)
    try:
        program = torch.export.load(source, extra_files=extra)
    except Exception as error:  # the format's reader raises many types on damaged files
        raise UserError(f'{path} is not a program written by torch.export: {error}') from None
    return program, extra[NOTE]


def _examined(path: Path) -> io.BytesIO:
    """A new archive of the members, each of which is known and harmless."""
    with open(path, 'rb') as file:
        if file.read(2) != b'PK':
            raise UserError(f'{path} is not a program written by torch.export: not an archive')
    check_archive(path, _known_members)
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, 'w') as new:
        for name in archive.namelist():
            inner, content = name.partition('/')[2], archive.read(name)
            try:
                if inner.endswith('.pt'):
                    torch.load(io.BytesIO(content), weights_only=True)
                elif inner.endswith('.json') and not inner.startswith('extra/'):
                    _examine(json.loads(content))
            except _Foreign as found:
                raise _refusal(path, f'its {inner} asks for {found}') from None
            except (ValueError, RecursionError) as error:
                raise UserError(f'program {path} is damaged: {inner}: {error}') from None
            except Exception as error:  # the unpickler's refusal, or any of the ways a damaged file fails
                named = re.search(r'GLOBAL ([\w.]+)', str(error))
                what = named[1] if named else 'more than tensors'
                raise _refusal(path, f'its {inner} contains {what}') from None
            new.writestr(name, content)
    copy.seek(0)
    return copy


def _known_members(path: Path, names: list[str]) -> None:
    for name in names:
        if not MEMBERS.fullmatch(name.partition('/')[2]):
            raise _refusal(path, f'it contains {name}, which is no part of an exported detector')
    roots = {name.partition('/')[0] for name in names}
    if len(roots) != 1:
        raise _refusal(path, f'it has the folders {", ".join(sorted(roots))}, not one')


def _refusal(path: Path, what: str) -> UserError:
    return UserError(f'program {path} was refused: {what}. {TRUST_HINT}')


class _Foreign(Exception):
    """Something that an exported detector does not need, in words."""


def _examine(node, key: str = '') -> None:
    """Every operator, expression, pickle and container type of a parsed JSON file."""
    if isinstance(node, list):
        for item in node:
            _examine(item, key)
        return
    if not isinstance(node, dict):
        if key == 'target' and not TARGETS.fullmatch(str(node)):
            raise _Foreign(f'the operator {node}')
        if key == 'expr_str' and not ARITHMETIC.fullmatch(SYMBOL.sub('s0', str(node))):
            raise _Foreign(f'the expression {str(node)[:80]!r}')
        if key in ('in_spec', 'out_spec'):
            _containers(json.loads(node))
        return
    if node.get('use_pickle'):
        raise _Foreign('a pickle')
    for found in ('guards_code', 'treespec_namedtuple_fields'):
        if node.get(found):
            raise _Foreign(found)
    for name in node.get('range_constraints') or ():
        _examine(name, 'expr_str')
    for name, value in node.items():
        _examine(value, name)


def _containers(spec) -> None:
    for item in spec if isinstance(spec, list) else [spec]:
        if isinstance(item, dict):
            if item.get('type') not in CONTAINERS:
                raise _Foreign(f'a {item.get("type")}')
            _containers(item.get('children_spec', []))
