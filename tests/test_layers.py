"""Imports point down only, cli and benchmarks first: cli -> report -> deploy -> engine, data -> distill ->
models -> compat; and a term sees no model."""
import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / 'hgd_det'
MAY = {
    'compat': {'compat'},
    'models': {'compat', 'models'},
    'distill': {'compat', 'models', 'distill'},
    'data': {'compat', 'data'},
    'engine': {'compat', 'models', 'distill', 'data', 'engine'},
    'deploy': {'compat', 'models', 'distill', 'data', 'engine', 'deploy'},
    'report': {'compat', 'models', 'distill', 'data', 'engine', 'deploy', 'report'},
    'benchmarks': {'compat', 'models', 'distill', 'data', 'engine', 'deploy', 'report', 'benchmarks'},
    'cli': {'compat', 'models', 'distill', 'data', 'engine', 'deploy', 'report', 'cli'},
}
LEAVES = {'errors', 'paths', 'checkpoint', 'weights', '__version__', 'MAX_PIXELS', 'registered', 'safe_types',
          'device'}


def imported(path: Path) -> set[str]:
    """Dotted names below hgd_det that a file imports, relative ones resolved."""
    names = set()
    package = ('hgd_det', *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(package[:len(package) - node.level + 1]) if node.level else ''
            module = '.'.join(part for part in (base, node.module) if part)
            names |= {f'{module}.{alias.name}' for alias in node.names}
    return {name.removeprefix('hgd_det.') for name in names if name.startswith('hgd_det.')}


FILES = sorted(p for p in PACKAGE.rglob('*.py') if p.parent != PACKAGE)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_its_own_layer_and_those_below(path):
    layer = path.relative_to(PACKAGE).parts[0]
    wrong = [n for n in imported(path) if n.split('.')[0] not in MAY[layer] | LEAVES]
    assert not wrong, f'{layer} may not import {wrong}'


def test_a_term_sees_neither_the_distiller_nor_a_teacher():
    terms = [p for p in FILES if p.parent.name == 'terms']
    assert len(terms) > 1
    for path in terms:
        assert not {n for n in imported(path) if n.split('.')[1:2] in (['distiller'], ['teacher'])}, path
