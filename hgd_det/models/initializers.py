"""Weight initialisation that `init_cfg` can name."""

from __future__ import annotations

import math

import torch
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import nn

from hgd_det.errors import UserError


@WEIGHT_INITIALIZERS.register_module()
class BackgroundPrior:
    """Lets a softmax head start at `p(background) = prior` on every anchor, the classes sharing the
    rest equally.

    With C classes and all other logits 0 this is the background bias `log(C * prior / (1 -
    prior))`. Without it, a head trained from scratch spends its first steps on nothing but learning
    that most anchors are background.

    Named in a head's `init_cfg`, after the entry that draws the weights:
    `init_cfg=[dict(type='Xavier', layer='Conv2d', distribution='uniform', bias=0),
    dict(type='BackgroundPrior')]`. The head's parameters keep their names: any `SSDHead` loads the
    result.
    """

    def __init__(self, prior: float = 0.9) -> None:
        if not 0 < prior < 1:
            raise UserError(f'BackgroundPrior: prior is {prior!r}, not a probability inside (0, 1)')
        self.prior = prior

    def __call__(self, module: nn.Module) -> None:
        if not hasattr(module, 'cls_convs') or getattr(module, 'use_sigmoid_cls', False):
            raise UserError('BackgroundPrior is for heads with a background class, such as '
                            f'SSDHead, not for {type(module).__name__}')
        bias = math.log(module.num_classes * self.prior / (1 - self.prior))
        with torch.no_grad():
            for convs in module.cls_convs:
                # Channels run anchor by anchor, and within an anchor the background comes last
                convs[-1].bias.view(-1, module.num_classes + 1)[:, -1] = bias
