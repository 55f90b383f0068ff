"""Imports point down only: cli -> experiments -> report -> deploy -> training -> evaluation, data, distill ->
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
    'evaluation': {'compat', 'models', 'evaluation'},
    'training': {'compat', 'models', 'distill', 'data', 'evaluation', 'training'},
    'deploy': {'compat', 'models', 'distill', 'data', 'evaluation', 'training', 'deploy'},
}
MAY['report'] = MAY['deploy'] | {'report'}
MAY['experiments'] = MAY['report'] | {'experiments'}
MAY['cli'] = MAY['experiments'] | {'cli'}
LEAVES = {'errors', 'paths', 'checkpoint', 'weights', 'outputs', 'gate', 'literal', 'device', '__version__',
          'MAX_PIXELS', 'registered', 'safe_types'}
# The files at the package's root beside them: what each may import. `registered` names what registers itself
ROOTS = {
    '__init__': {'compat'}, 'errors': set(), 'paths': {'errors'}, 'safe_types': {'errors'},
    'literal': {'errors'}, 'device': set(), 'outputs': {'errors', 'paths'},
    'checkpoint': {'errors', 'paths', 'safe_types'}, 'weights': {'errors', 'paths', 'checkpoint'},
    # the gate knows what is registered, wherever it is
    'gate': {'errors', 'paths', 'checkpoint', 'registered', *MAY['training']},
    'registered': MAY['training'], 'testing': MAY['deploy'], '__main__': {'cli'},
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


def test_nothing_leads_back_to_itself():
    """Of what a file imports when it is imported itself: what a function imports is there by then."""
    files = {'.'.join(p.relative_to(PACKAGE).with_suffix('').parts).removesuffix('.__init__'): p
             for p in [*FILES, *PACKAGE.glob('*.py')]}
    graph = {}
    for name, path in files.items():
        package = ('hgd_det', *path.relative_to(PACKAGE).parent.parts)
        found = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = '.'.join(package[:len(package) - node.level + 1]) if node.level else ''
                module = '.'.join(part for part in (base, node.module) if part)
                found |= {f'{module}.{alias.name}' for alias in node.names} | {module}
        found = {n.removeprefix('hgd_det.') for n in found}
        graph[name] = {n for n in found if n in files and n != name and not name.startswith(f'{n}.')}
    while leaves := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert not graph, f'circles among {sorted(graph)}'


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
