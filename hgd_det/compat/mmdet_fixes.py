"""Repairs of MMDetection that no configuration can make. Each says what is broken and where."""
from __future__ import annotations


def apply() -> None:
    """Repair the installed mmdet; harmless when there is nothing to repair."""
    from mmdet.models.dense_heads import SSDHead
    from mmdet.models.necks.ssd_neck import L2Norm

    # mmdet 3.2 to 3.5 ask `self.loss_cls` for a custom activation when they predict. SSDHead has no
    # such attribute, so no SSD can be evaluated: AttributeError: 'SSDHead' object has no attribute
    # 'loss_cls'. None answers the question with "no".
    if not hasattr(SSDHead, 'loss_cls'):
        SSDHead.loss_cls = None

    # Until `init_weights` its weight is whatever lies in memory, nan perhaps: two detectors of one seed
    # differ, and a detector that is only timed or counted may compute with nan.
    if not hasattr(L2Norm, 'begins_with_its_scale'):
        created = L2Norm.__init__

        def __init__(self, n_dims, scale=20., eps=1e-10):
            created(self, n_dims, scale, eps)
            self.weight.data.fill_(scale)

        L2Norm.__init__, L2Norm.begins_with_its_scale = __init__, True
