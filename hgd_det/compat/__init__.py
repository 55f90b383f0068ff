"""The only code that knows which mmengine, mmcv and mmdet are installed.

- `finder`, `extension`: a stand-in for mmcv's compiled operators where absent, each on its input's device;
  the operators are in `nms`, `roi_align`, `focal_loss`, `ms_deform_attn`, `deform_conv` and `reassembly`;
- `environment`: which versions are installed, and what to do about a missing or unfit one;
- `guard`: every checkpoint that mmengine reads goes through `hgd_det.checkpoint`, which also cures that
  mmengine 0.10.7 cannot read its own from torch 2.6 on;
- `mmdet_fixes`: repairs of mmdet.

`import hgd_det` runs `install`; the patches are applied by `import hgd_det.registered`.
"""

from hgd_det.compat.finder import install

__all__ = ['check', 'install', 'versions']


def check():
    """Raise a `UserError` that says which packages to install or change, if any."""
    from hgd_det.compat import environment
    environment.check()


def versions():
    """Versions of everything that matters for a result, for logs and result tables."""
    from hgd_det.compat import environment
    return environment.versions()
