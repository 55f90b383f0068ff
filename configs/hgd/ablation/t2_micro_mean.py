# Table 2: places weighted by mean, stages alike; paper: 71.5 mAP.
#
#   python tools/train.py configs/hgd/ablation/t2_micro_mean.py
_base_ = '../ssd_half_voc.py'

model = dict(terms=dict(hgd=dict(macro='none', micro='mean')))
