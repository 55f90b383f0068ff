"""docs/architecture.md walks through the tree as it is: what it names is there."""
import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / 'docs/architecture.md').read_text()
PACKAGE = ROOT / 'hgd_det'
WALK = TEXT.partition("## A stranger's walk")[2].partition('\n## ')[0]


@cache
def defined(path: Path) -> set[str]:
    """Functions, classes, and what classes define, as `Class.function`."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f'{node.name}.{each.name}' for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


@pytest.mark.parametrize('name', sorted(set(re.findall(r'\b[\w/]+/\w+\.py\b', TEXT))))
def test_a_file_that_it_names_exists(name):
    assert (ROOT / name).is_file() or (PACKAGE / name).is_file()


@pytest.mark.parametrize(('path', 'name'), sorted(set(re.findall(r'`([\w/]+\.py):([\w.]+)`', TEXT))))
def test_what_it_names_in_a_file_is_defined_there(path, name):
    assert name in defined(ROOT / path)


def test_each_walk_has_at_most_eight_stops():
    walks = re.split(r'^\*\*(One \w+)\*\*$', WALK, flags=re.M)[1:]
    walks = dict(zip(walks[::2], walks[1::2], strict=True))
    assert list(walks) == ['One batch', 'One config', 'One checkpoint']
    for name, walk in walks.items():
        stops = re.findall(r'^(\d+)\. `[\w/]+\.py:[\w.]+`', walk, flags=re.M)
        assert 0 < len(stops) <= 8 and [int(stop) for stop in stops] == list(range(1, len(stops) + 1)), name


def test_every_package_and_every_leaf_is_named():
    """Beside the way in and the fakes for tests."""
    layers = TEXT.partition('## Layers')[2].partition('\n## ')[0]
    here = {path.parent.name for path in PACKAGE.glob('*/__init__.py')} | {
        path.stem for path in PACKAGE.glob('*.py')} - {'__init__', '__main__', 'testing'}
    assert not {name for name in here if not re.search(rf'\b{name}\b', layers)}
