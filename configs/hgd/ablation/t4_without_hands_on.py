# Table 4: cosine and re-weighting on the six head maps only; paper: 70.8 mAP.
#
#   python tools/train.py configs/hgd/ablation/t4_without_hands_on.py
_base_ = '../ssd_half_voc.py'

model = dict(terms=dict(hgd=dict(select='heads')))
