"""SSD300 on MobileNetV1, extra layers and heads separable; the 8732 anchors of SSD-VGG.

The paper gives only the sum, 4.4 M parameters and 1.19 G multiply-adds. Extra layers of 512, 512
and 256 channels come to 4.45 M and 1.18 G with VOC's classes; with 512, 256, 256, the widths common
for MobileNet-SSD, it would be 4.22 M.
"""

_base_ = './ssd300_vgg16.py'

channels = [256, 512, 1024, 512, 512, 256]
norm_cfg = dict(type='BN')

model = dict(
    backbone=dict(_delete_=True, type='MobileNetV1SSD'),
    neck=dict(
        in_channels=channels[:3],
        out_channels=channels,
        level_strides=[2, 2, 1],
        level_paddings=[1, 1, 0],
        l2_norm_scale=None,  # BatchNorm already keeps the first map's scale
        use_depthwise=True,
        norm_cfg=norm_cfg),
    bbox_head=dict(in_channels=channels, use_depthwise=True, norm_cfg=norm_cfg))
