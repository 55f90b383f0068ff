"""SSD's VGG backbone at any depth and any width."""

from __future__ import annotations

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from hgd_det.errors import UserError
from hgd_det.models.pretrained import load_vgg

CONVS_PER_STAGE = {
    11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
STAGE_CHANNELS = (64, 128, 256, 512, 512)
FC_CHANNELS = 1024


@MODELS.register_module()
class SlimSSDVGG(BaseModule):
    """VGG up to fc7 as SSD has it (https://arxiv.org/abs/1512.02325), every width scaled.

    The output is what SSD's neck reads: the map after the last ReLU of stage 4 (conv4_3 in VGG16,
    stride 8) and the map after fc7's ReLU (stride 16). Where they lie follows from the depth, so a
    config names neither.

    At `width=1` and without BatchNorm the modules carry the names of MMDetection's `SSDVGG`, so
    that either class loads the other's weights key for key and computes the same.

    Args:
        depth: 11, 13, 16 or 19.
        width: factor on the channels of the 13 convolutions (at depth 16), fc6 and fc7. The neck's
            and the head's channels are the config's part; `out_channels` tells what the two outputs
            have.
        with_bn: BatchNorm between each convolution and its ReLU, fc6 and fc7 included.
        bn_eval: keep BatchNorm on its running statistics in training. False here: mmcv's VGG has
            True, which leaves a network trained from scratch without any normalisation.
        ceil_mode: round pooled sizes up, which is what makes 300 px end in 38x38 and 19x19.
        init_cfg: None draws the weights (Kaiming). `dict(type='Pretrained', checkpoint=PATH)` then
            lays ImageNet weights over them, see `hgd_det.models.pretrained`. Anything else is
            MMEngine's.
    """

    def __init__(self, depth: int = 16, width: float = 1.0, *, with_bn: bool = False,
                 bn_eval: bool = False, ceil_mode: bool = True,
                 init_cfg: dict | list | None = None) -> None:
        if depth not in CONVS_PER_STAGE:
            raise UserError(f'SlimSSDVGG: depth is {depth!r}; '
                            f'choose one of {sorted(CONVS_PER_STAGE)}')
        if not 0 < width <= 8:
            raise UserError(f'SlimSSDVGG: width is {width!r}; it is a factor such as 1.0 or 0.5')
        # Pretrained weights are loaded by `init_weights` below: MMEngine's own loader skips what
        # does not fit, in silence
        is_file = isinstance(init_cfg, dict) and init_cfg.get('type') == 'Pretrained'
        self.pretrained = init_cfg['checkpoint'] if is_file else None
        super().__init__([
            dict(type='Kaiming', layer='Conv2d'),
            dict(type='Constant', val=1, layer='BatchNorm2d'),
        ] if is_file or init_cfg is None else init_cfg)
        self.bn_eval = bn_eval

        widths = [max(1, round(channels * width)) for channels in STAGE_CHANNELS]
        fc_width = max(1, round(FC_CHANNELS * width))
        layers: list[nn.Module] = []
        channels = 3
        for stage, repeats in enumerate(CONVS_PER_STAGE[depth]):
            if stage:
                layers.append(nn.MaxPool2d(2, stride=2, ceil_mode=ceil_mode))
            for _ in range(repeats):
                layers += _conv(channels, widths[stage], with_bn, kernel_size=3, padding=1)
                channels = widths[stage]
            if stage == 3:
                source = len(layers) - 1
        self.trunk_length = len(layers)
        # pool5 keeps the resolution and fc6 is dilated, which keeps fc6's field of view at half the
        # stride of VGG
        layers.append(nn.MaxPool2d(3, stride=1, padding=1))
        layers += _conv(channels, fc_width, with_bn, kernel_size=3, padding=6, dilation=6)
        layers += _conv(fc_width, fc_width, with_bn, kernel_size=1)
        self.features = nn.Sequential(*layers)
        self.out_feature_indices = (source, len(layers) - 1)
        self.out_channels = (widths[3], fc_width)

    def init_weights(self) -> None:
        first_time = not self.is_init
        super().init_weights()
        if self.pretrained is not None and first_time:
            load_vgg(self.features, self.pretrained, self.trunk_length)

    def train(self, mode: bool = True) -> SlimSSDVGG:
        super().train(mode)
        if self.bn_eval:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outs = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.out_feature_indices:
                outs.append(x)
        return tuple(outs)


def _conv(in_channels: int, out_channels: int, with_bn: bool, **conv) -> list[nn.Module]:
    # The bias stays under BatchNorm too, where it has no effect: so does torchvision's vgg16_bn,
    # which then still fits
    norm = [nn.BatchNorm2d(out_channels)] if with_bn else []
    return [nn.Conv2d(in_channels, out_channels, **conv), *norm, nn.ReLU(inplace=True)]
