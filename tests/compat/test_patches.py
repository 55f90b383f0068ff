"""Other libraries are changed in `hgd_det/compat` and nowhere else."""
import ast
from pathlib import Path

import hgd_det

PACKAGE = Path(hgd_det.__file__).parent
THEIRS = ('mmengine', 'mmcv', 'mmdet', 'torch', 'numpy', 'cv2')


def root(node):
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def patches(text):
    """Lines that give an attribute of what was imported from another library a new value."""
    tree = ast.parse(text)
    foreign = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            foreign |= {(a.asname or a.name).split('.')[0] for a in node.names
                        if a.name.split('.')[0] in THEIRS}
        elif isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] in THEIRS:
            foreign |= {a.asname or a.name for a in node.names}
    for node in ast.walk(tree):
        targets = getattr(node, 'targets', [getattr(node, 'target', None)])
        if isinstance(node, ast.Call) and getattr(node.func, 'id', None) == 'setattr':
            targets = [ast.Attribute(node.args[0])]
        elif isinstance(node, ast.Call) and any(k.arg == 'force' for k in node.keywords):
            targets = [node.func]  # a registered thing of theirs replaced
        elif not isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Delete)):
            continue
        for target in targets:
            if isinstance(target, ast.Attribute) and root(target) in foreign:
                yield node.lineno


def test_no_file_outside_of_compat_patches_another_library():
    files = [path for path in PACKAGE.rglob('*.py') if path.parent != PACKAGE / 'compat']
    assert len(files) > 100
    found = [f'{path.relative_to(PACKAGE)}:{line}' for path in files for line in patches(path.read_text())]
    assert not found


def test_a_patch_is_recognised():
    for line in ('mm.load = 1', 'setattr(mm.Runner, "run", 1)', 'mm.Loader.register("a", 1, force=True)',
                 'del mm.a', 'mm.a += 1'):
        assert list(patches(f'from mmengine.runner import checkpoint as mm\n{line}')) == [2]
    assert not list(patches('import mmengine\nmine.a = mmengine.a'))
    assert list(patches((PACKAGE / 'compat/guard.py').read_text()))
