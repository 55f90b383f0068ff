# Half-width SSD300 taught with factor transfer on the 19x19 and 10x10 maps: the paraphraser learns in
# the first 10 % of the iterations while the student trains alone. No published number for this pair;
# HGD paper: the plain student 65.6 mAP.
#
#   python tools/train.py configs/lectures/factor_transfer_half_voc.py
_base_ = '../_base_/distill_voc_half.py'

model = dict(terms=dict(factor=dict(type='FactorTransfer', rate=0.5, pretrain=0.1, weight=500.0)))
