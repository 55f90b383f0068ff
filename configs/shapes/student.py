# The tiny student on the built-in shapes: half the teacher's channels, trained alone and as long.
#
#   hgd-det data shapes data/shapes
#   python tools/train.py configs/shapes/student.py
_base_ = './teacher.py'

channels = [64, 128, 64, 32]

model = dict(
    backbone=dict(width=0.125),
    neck=dict(in_channels=channels[:2], out_channels=channels),
    bbox_head=dict(in_channels=channels))
