"""Stands in for `mmcv._ext`: NMS, soft-NMS, RoIAlign, and a clear error for all other operators."""

from hgd_det.compat.nms import nms, softnms
from hgd_det.compat.roi_align import roi_align_backward, roi_align_forward
from hgd_det.errors import MissingOpError

OPS = {op.__name__: op for op in (nms, softnms, roi_align_forward, roi_align_backward)}


def fill(module):
    """Put the operators into `module` (done when `mmcv._ext` is first imported)."""
    vars(module).update(OPS, __getattr__=missing)


def missing(name):
    """Module-level `__getattr__`: mmcv asks for every operator at import and calls few of them."""
    if name.startswith('__'):  # `__path__`, `__file__`, ...: asked for by the import system
        raise AttributeError(name)

    def op(*args, **kwargs):
        from hgd_det.compat.environment import installed, version
        name_installed = (installed('mmcv') or ['onedl-mmcv'])[0]
        # mmcv-lite is mmcv without its extension; the sources are in mmcv.
        source = name_installed.replace('mmcv-lite', 'mmcv')
        # mmcv compiles when its setup can import torch, hence no build isolation; and pip would
        # otherwise take the operator-less wheel from its cache.
        raise MissingOpError(
            f"operator '{name}' is needed, but the installed mmcv has no compiled operators, and "
            f'hgd_det stands in only for {", ".join(OPS)}. To build them (about 20 minutes; needs '
            'a C++ compiler, ninja, setuptools and, for a GPU, the CUDA toolkit): MMCV_WITH_OPS=1 '
            'pip install --no-build-isolation --no-cache-dir --no-deps --force-reinstall '
            f'--no-binary {source} "{source}=={version(name_installed)}"')

    op.__name__ = name
    return op
