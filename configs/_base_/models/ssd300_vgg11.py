"""SSD300 on VGG11: fewer layers, the same widths."""

_base_ = './ssd300_vgg16.py'

model = dict(backbone=dict(depth=11))
