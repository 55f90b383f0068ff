"""Serve a stand-in for `mmcv._ext` where mmcv was installed without its compiled operators.

mmcv imports its extension at module level in every file of `mmcv.ops`, so without it not even
`import mmdet.models` works. The finder stands at the very end of `sys.meta_path`: it is asked only
after every regular finder has given up, hence a compiled extension, wherever it comes from, is
always the one that is used.
"""

import sys
from importlib.machinery import ModuleSpec

NAME = 'mmcv._ext'


class StandInFinder:
    """Finds and loads `mmcv._ext`, nothing else. torch is imported only when that happens.

    Finder and loader by shape, not by inheritance: importing `importlib.abc` would be most of the
    cost of `import hgd_det`.
    """

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        if fullname == NAME:
            return ModuleSpec(fullname, StandInFinder, origin=__name__)
        return None

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        from hgd_det.compat import extension
        extension.fill(module)


def install():
    """Append the finder, once. Importing `hgd_det` does this."""
    if StandInFinder not in sys.meta_path:
        sys.meta_path.append(StandInFinder)
