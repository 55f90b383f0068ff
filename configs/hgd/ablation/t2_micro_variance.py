# Table 2: places weighted by variance, stages alike; paper: 71.7 mAP.
#
#   python tools/train.py configs/hgd/ablation/t2_micro_variance.py
_base_ = '../ssd_half_voc.py'

model = dict(terms=dict(hgd=dict(macro='none', micro='variance')))
