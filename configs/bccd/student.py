# The teacher at half its channels, alone and a quarter as long.
#
#   python tools/train.py configs/bccd/student.py
_base_ = './teacher.py'

channels = [64, 128, 64, 32]

model = dict(
    backbone=dict(width=0.125),
    neck=dict(in_channels=channels[:2], out_channels=channels),
    bbox_head=dict(in_channels=channels))

train_cfg = dict(max_iters=500, val_interval=250)
