# The tiny student taught with factor transfer: the twin of configs/lectures/factor_transfer_half_voc.py
# for a laptop. Train configs/shapes/teacher.py first.
#
#   python tools/train.py configs/shapes/factor_transfer.py
_base_ = './_base_/distill.py'

model = dict(terms=dict(factor=dict(type='FactorTransfer', rate=0.5, pretrain=0.1, weight=500.0)))
