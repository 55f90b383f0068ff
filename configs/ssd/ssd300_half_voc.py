# SSD300-VGG16 at half width on VOC, alone from scratch; paper: 65.6 mAP (11 points).
#
#   python tools/train.py configs/ssd/ssd300_half_voc.py
_base_ = [
    '../_base_/models/ssd300_half.py', '../_base_/datasets/voc0712.py',
    '../_base_/schedule_120e.py', '../_base_/runtime.py',
]
