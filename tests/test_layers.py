"""Imports point down only: cli -> experiments -> report -> deploy -> engine, data -> distill -> models ->
compat; and a term sees no model."""
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
    'experiments': {'compat', 'models', 'distill', 'data', 'engine', 'deploy', 'report', 'experiments'},
    'cli': {'compat', 'models', 'distill', 'data', 'engine', 'deploy', 'report', 'experiments', 'cli'},
}
LEAVES = {'errors', 'paths', 'checkpoint', 'weights', 'outputs', 'gate', 'literal', '__version__',
          'MAX_PIXELS', 'registered', 'safe_types'}
# The files at the package's root beside them: what each may import. `registered` names what registers itself
ROOTS = {
    '__init__': {'compat'}, 'errors': set(), 'paths': {'errors'}, 'safe_types': {'errors'},
    'literal': {'errors'}, 'outputs': {'errors', 'paths'},
    'checkpoint': {'errors', 'paths', 'safe_types'}, 'weights': {'errors', 'paths', 'checkpoint'},
    # the gate knows what is registered, wherever it is
    'gate': {'errors', 'paths', 'checkpoint', 'registered', *MAY['engine']},
    'registered': MAY['engine'], 'testing': MAY['deploy'], '__main__': {'cli'},
}
# What starts processes, or code of its own in them
STARTERS = ('subprocess', 'multiprocessing', 'concurrent', 'fcntl', 'torch.multiprocessing',
            'torch.distributed')
STARTING = ('spawn', 'exec', 'fork', 'posix_spawn', 'popen', 'system')    # functions of os


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, relative ones resolved."""
    names = set()
    package = ('hgd_det', *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(package[:len(package) - node.level + 1]) if node.level else ''
            module = '.'.join(part for part in (base, node.module) if part)
            names |= {f'{module}.{alias.name}' for alias in node.names}
    return names


def inside(path: Path) -> set[str]:
    """Of these the package's own, without its name."""
    return {name.removeprefix('hgd_det.') for name in imported(path) if name.startswith('hgd_det.')}


FILES = sorted(p for p in PACKAGE.rglob('*.py') if p.parent != PACKAGE)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_its_own_layer_and_those_below(path):
    layer = path.relative_to(PACKAGE).parts[0]
    wrong = [n for n in inside(path) if n.split('.')[0] not in MAY[layer] | LEAVES]
    assert not wrong, f'{layer} may not import {wrong}'


@pytest.mark.parametrize('path', sorted(PACKAGE.glob('*.py')), ids=lambda p: p.name)
def test_so_does_a_file_at_the_root(path):
    wrong = [n for n in inside(path) if n.split('.')[0] not in ROOTS[path.stem]]
    assert not wrong, f'{path.name} may not import {wrong}'


def test_every_folder_of_the_package_is_a_package():
    """`find_packages` passes over a folder without an `__init__.py`, and a wheel lacks it."""
    assert not [p for p in PACKAGE.rglob('*/') if any(p.glob('*.py')) and not (p / '__init__.py').is_file()]


def test_every_layer_is_told():
    assert {p.relative_to(PACKAGE).parts[0] for p in FILES} == MAY.keys()


def test_the_report_starts_no_process():
    for path in (p for p in FILES if p.relative_to(PACKAGE).parts[0] == 'report'):
        wrong = {n for n in imported(path) for starter in STARTERS if f'{n}.'.startswith(f'{starter}.')}
        wrong |= {f'os.{node.attr}' for node in ast.walk(ast.parse(path.read_text()))
                  if isinstance(node, ast.Attribute) and getattr(node.value, 'id', '') == 'os'
                  and node.attr.startswith(STARTING)}
        assert not wrong, f'{path} may not use {wrong}'


def test_a_term_sees_neither_the_distiller_nor_a_teacher():
    terms = [p for p in FILES if p.parent.name == 'terms']
    assert len(terms) > 1
    for path in terms:
        assert not {n for n in inside(path) if n.split('.')[1:2] in (['distiller'], ['teacher'])}, path
