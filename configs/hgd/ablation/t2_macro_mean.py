# Table 2: stages weighted by mean, places alike; paper: 71.8 mAP.
#
#   python tools/train.py configs/hgd/ablation/t2_macro_mean.py
_base_ = '../ssd_half_voc.py'

model = dict(terms=dict(hgd=dict(macro='mean', micro='none')))
