# Table 4: the six head maps with L2, plain Hint; paper: 68.1 mAP.
#
#   python tools/train.py configs/hgd/ablation/t4_origin.py
_base_ = '../ssd_half_voc.py'

model = dict(terms=dict(hgd=dict(distance='l2', select='heads', macro='none', micro='none')))
