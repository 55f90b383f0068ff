# SSD300-VGG11 on VOC, alone from scratch; paper: 72.7 mAP (11 points).
#
#   python tools/train.py configs/ssd/ssd300_vgg11_voc.py
_base_ = [
    '../_base_/models/ssd300_vgg11.py', '../_base_/datasets/voc0712.py',
    '../_base_/schedule_120e.py', '../_base_/runtime.py',
]
