# SSD300-VGG11 on COCO 2017, alone from scratch; no number in the paper.
#
#   python tools/train.py configs/ssd/ssd300_vgg11_coco.py
_base_ = [
    '../_base_/models/ssd300_vgg11.py', '../_base_/datasets/coco.py',
    '../_base_/schedule_120e.py', '../_base_/runtime.py',
]

model = dict(
    bbox_head=dict(num_classes=80, anchor_generator=dict(basesize_ratio_range=(0.15, 0.9))))
