# The tiny student whose anchors the teacher picks: the twin of configs/lectures/lad_half_voc.py for a
# laptop. Train configs/shapes/teacher.py first.
#
#   python tools/train.py configs/shapes/lad.py
_base_ = './_base_/distill.py'

model = dict(terms=dict(lad=dict(type='LAD', select='gmm', iou=0.3, per_level=9)))
