# The tiny student taught the teacher's class logits: the twin of
# configs/lectures/logit_l2_half_voc.py for a laptop. Train configs/shapes/teacher.py first.
#
#   python tools/train.py configs/shapes/logit_l2.py
_base_ = './_base_/distill.py'

model = dict(terms=dict(logits=dict(type='LogitL2', weight='auto')))
