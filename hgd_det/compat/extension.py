"""Stands in for `mmcv._ext`: the operators that detectors of mmdet call, and a clear error for all others.

Left out are those that no detector needs, or a few configs of mmdet: pooling other than RoIAlign
(`roi_pool`, `deform_roi_pool`), mmcv's own synchronised normalisation, rotated and three-dimensional boxes.
"""

import re

from hgd_det.compat import deform_conv, focal_loss, ms_deform_attn, nms, reassembly, roi_align
from hgd_det.errors import MissingOpError

OPS = {op.__name__: op for op in (
    nms.nms, nms.softnms, nms.nms_match,
    roi_align.roi_align_forward, roi_align.roi_align_backward,
    focal_loss.sigmoid_focal_loss_forward, focal_loss.sigmoid_focal_loss_backward,
    focal_loss.softmax_focal_loss_forward, focal_loss.softmax_focal_loss_backward,
    ms_deform_attn.ms_deform_attn_forward, ms_deform_attn.ms_deform_attn_backward,
    deform_conv.deform_conv_forward, deform_conv.deform_conv_backward_input,
    deform_conv.deform_conv_backward_parameters,
    deform_conv.modulated_deform_conv_forward, deform_conv.modulated_deform_conv_backward,
    reassembly.carafe_forward, reassembly.carafe_backward,
    reassembly.masked_im2col_forward, reassembly.masked_col2im_forward,
)}

FAMILIES = list(dict.fromkeys(re.sub('_(forward|backward).*', '', name) for name in OPS))

# What a config can say in place of the layer that calls an operator, by how the operator's name begins.
INSTEAD = {
    'sync_bn': "norm_cfg=dict(type='SyncBN'), PyTorch's own, in place of MMSyncBN",
    'roi_pool': "roi_layer=dict(type='RoIAlign', ...)",
    'deform_roi_pool': "roi_layer=dict(type='RoIAlign', ...)",
}


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
        instead = next((f' The config can say {words}.' for start, words in INSTEAD.items()
                        if name.startswith(start)), '')
        raise MissingOpError(
            f"operator '{name}' is needed, but the installed mmcv has no compiled operators, and "
            f'hgd_det stands in only for {", ".join(FAMILIES)}.{instead} To build them (about 20 minutes; '
            'needs a C++ compiler, ninja, setuptools and, for a GPU, the CUDA toolkit): MMCV_WITH_OPS=1 '
            'pip install --no-build-isolation --no-cache-dir --no-deps --force-reinstall '
            f'--no-binary {source} "{source}=={version(name_installed)}"')

    op.__name__ = name
    return op
