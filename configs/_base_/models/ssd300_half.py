"""SSD300-VGG16 with every internal width halved; what the head predicts stays whole."""

_base_ = './ssd300_vgg16.py'

channels = [256, 512, 256, 128, 128, 128]

model = dict(
    backbone=dict(width=0.5),
    neck=dict(in_channels=channels[:2], out_channels=channels),
    bbox_head=dict(in_channels=channels))
