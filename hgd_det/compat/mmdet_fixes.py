"""Repairs of MMDetection that no configuration can make. Each says what is broken and where."""
from __future__ import annotations


def apply() -> None:
    """Repair the installed mmdet; harmless when there is nothing to repair."""
    from mmdet.models.dense_heads import SSDHead

    # mmdet 3.2 to 3.5 ask `self.loss_cls` for a custom activation when they predict. SSDHead has no
    # such attribute, so no SSD can be evaluated: AttributeError: 'SSDHead' object has no attribute
    # 'loss_cls'. None answers the question with "no".
    if not hasattr(SSDHead, 'loss_cls'):
        SSDHead.loss_cls = None
