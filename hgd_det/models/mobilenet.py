"""MobileNetV1 for SSD, laid out so that its anchors are those of SSD-VGG."""

from __future__ import annotations

from mmcv.cnn import ConvModule, DepthwiseSeparableConvModule
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from hgd_det.errors import UserError

# (channels, stride) of the 13 separable blocks, https://arxiv.org/abs/1704.04861
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1),
          (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1))


@MODELS.register_module()
class MobileNetV1SSD(BaseModule):
    """MobileNetV1 without its classifier. At 300 px blocks 5, 11 and 13 give 38x38, 19x19 and
    10x10.

    The widespread MobileNet-SSD reads its first map at 19x19 and so has other anchors than SSD-VGG.
    Starting at 38x38 instead, followed by three extra layers (5, 3, 1), gives the same six sizes,
    hence the same 8732 anchors, and methods that compare two detectors anchor by anchor apply.

    `features.0` is the stem and `features.N` is block N of the paper.
    """

    def __init__(self, width: float = 1.0, *, out_blocks: tuple[int, ...] = (5, 11, 13),
                 init_cfg: dict | list | None = None) -> None:
        if not 0 < width <= 8:
            raise UserError(f'MobileNetV1SSD: width is {width!r}; it is a factor such as 0.5')
        if not all(1 <= block <= len(BLOCKS) for block in out_blocks):
            raise UserError(f'MobileNetV1SSD: out_blocks is {out_blocks}; '
                            f'blocks are numbered 1 to {len(BLOCKS)}')
        super().__init__([
            dict(type='Kaiming', layer='Conv2d'),
            dict(type='Constant', val=1, layer='BatchNorm2d'),
        ] if init_cfg is None else init_cfg)
        widths = [max(1, round(channels * width)) for channels, _ in BLOCKS]
        norm_cfg = dict(type='BN')
        channels = max(1, round(32 * width))
        layers: list[nn.Module] = [
            ConvModule(3, channels, 3, stride=2, padding=1, norm_cfg=norm_cfg)]
        for block_width, (_, stride) in zip(widths, BLOCKS, strict=True):
            layers.append(DepthwiseSeparableConvModule(
                channels, block_width, 3, stride=stride, padding=1, norm_cfg=norm_cfg))
            channels = block_width
        self.features = nn.Sequential(*layers)
        self.out_blocks = tuple(out_blocks)
        self.out_channels = tuple(widths[block - 1] for block in out_blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outs = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.out_blocks:
                outs.append(x)
        return tuple(outs)
