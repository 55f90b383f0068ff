# Half-width SSD300 taught which pixels the teacher's detection loss depends on (gradient-based attention
# transfer). Train without --amp. No published number for this pair; HGD paper: the plain student 65.6 mAP.
#
#   python tools/train.py configs/lectures/gradient_attention_half_voc.py
_base_ = '../_base_/distill_voc_half.py'

model = dict(terms=dict(gradient=dict(type='GradientAttention', weight='auto')))
