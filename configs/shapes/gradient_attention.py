# The tiny student taught which pixels the teacher's loss depends on: the twin of
# configs/lectures/gradient_attention_half_voc.py for a laptop. Train configs/shapes/teacher.py first.
#
#   python tools/train.py configs/shapes/gradient_attention.py
_base_ = './_base_/distill.py'

model = dict(terms=dict(gradient=dict(type='GradientAttention', weight='auto')))
