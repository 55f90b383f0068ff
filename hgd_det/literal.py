"""Reads the config text inside a checkpoint without running it.

mmengine stores a run's config as Python source and reads it back by executing it. What a checkpoint
holds is a file from somewhere, so here the text is parsed, and only what a dumped config consists of
is understood: assignments of literals, tuples, lists, and dicts, the latter also as ``dict(a=1)``.
"""
from __future__ import annotations

import ast
import warnings

from hgd_det.errors import UserError

LONGEST = 4_000_000    # letters of a config; real ones have thousands


def read(text: str) -> dict:
    """``'a = 1\\nb = dict(c=[2])'`` as ``{'a': 1, 'b': {'c': [2]}}``."""
    if len(text) > LONGEST:
        raise UserError(f'the config inside the checkpoint has {len(text):,} letters; none has more than '
                        f'{LONGEST:,}')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')    # of escapes in strings
            body = ast.parse(text).body
        values = {}
        for statement in body:
            if not (isinstance(statement, ast.Assign) and len(statement.targets) == 1
                    and isinstance(statement.targets[0], ast.Name)):
                raise _refusal(statement)
            values[statement.targets[0].id] = _value(statement.value)
        return values
    except UserError:
        raise
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        # TypeError: a list as a key, say
        raise UserError(f'the config inside the checkpoint cannot be parsed: {error}') from None


def _value(node: ast.expr):
    match node:
        case ast.Constant(value):
            return value
        case ast.List(items):
            return [_value(item) for item in items]
        case ast.Tuple(items):
            return tuple(_value(item) for item in items)
        case ast.Set(items):
            return {_value(item) for item in items}
        case ast.Dict(keys, items) if None not in keys:
            return {_value(key): _value(item) for key, item in zip(keys, items, strict=True)}
        case ast.Call(ast.Name('dict'), [], words) if all(word.arg for word in words):
            return {word.arg: _value(word.value) for word in words}
        case ast.Call(ast.Name('dict'), [ast.Dict() as whole], []):    # keys that are no words
            return _value(whole)
        case ast.UnaryOp(ast.USub() | ast.UAdd() as sign, ast.Constant(int() | float() as number)):
            return -number if isinstance(sign, ast.USub) else number
        case ast.Name('inf' | 'nan' as name):  # as a dumped float('inf') reads
            return float(name)
    raise _refusal(node)


def _refusal(node: ast.AST) -> UserError:
    text = ast.unparse(node) if len(list(ast.walk(node))) < 1000 else type(node).__name__
    return UserError(f'the config inside the checkpoint holds more than plain values '
                     f'({text[:80]!r}); it was not run. Give the config file beside it')
