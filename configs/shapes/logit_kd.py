# The tiny student taught the teacher's softened class scores: the twin of
# configs/lectures/logit_kd_half_voc.py for a laptop. Train configs/shapes/teacher.py first.
#
#   python tools/train.py configs/shapes/logit_kd.py
_base_ = './_base_/distill.py'

model = dict(terms=dict(kd=dict(type='LogitKD', temperature=4.0, weight=1.0)))
