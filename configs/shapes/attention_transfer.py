# The tiny student taught with activation-based attention transfer: the twin of
# configs/lectures/attention_transfer_half_voc.py for a laptop. Train configs/shapes/teacher.py first.
#
#   python tools/train.py configs/shapes/attention_transfer.py
_base_ = './_base_/distill.py'

model = dict(terms=dict(attention=dict(type='AttentionTransfer', mode='sum', weight='auto')))
