# Half-width SSD300 whose anchors SSD300-VGG16 picks: label assignment distillation (Nguyen et al. 2022).
# No published number for this pair; HGD paper: the plain student 65.6 mAP.
#
#   python tools/train.py configs/lectures/lad_half_voc.py
_base_ = '../_base_/distill_voc_half.py'

model = dict(terms=dict(lad=dict(type='LAD', select='gmm', iou=0.3, per_level=9)))
