# SSD300-MobileNet on VOC, alone from scratch; paper: 62.5 mAP (11 points).
#
#   python tools/train.py configs/ssd/ssd300_mobilenet_voc.py
_base_ = [
    '../_base_/models/ssd300_mobilenet.py', '../_base_/datasets/voc0712.py',
    '../_base_/schedule_120e.py', '../_base_/runtime.py',
]

# BatchNorm cannot train on a last batch of one image: its last map is a single number per channel
train_dataloader = dict(drop_last=True)
