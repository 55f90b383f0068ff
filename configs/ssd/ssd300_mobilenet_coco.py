# SSD300-MobileNet on COCO 2017, alone from scratch; no number in the paper.
#
#   python tools/train.py configs/ssd/ssd300_mobilenet_coco.py
_base_ = [
    '../_base_/models/ssd300_mobilenet.py', '../_base_/datasets/coco.py',
    '../_base_/schedule_120e.py', '../_base_/runtime.py',
]

model = dict(
    bbox_head=dict(num_classes=80, anchor_generator=dict(basesize_ratio_range=(0.15, 0.9))))

# BatchNorm cannot train on a last batch of one image: its last map is a single number per channel
train_dataloader = dict(drop_last=True)
