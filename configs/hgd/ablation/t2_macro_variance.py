# Table 2: stages weighted by variance, places alike; paper: 71.3 mAP.
#
#   python tools/train.py configs/hgd/ablation/t2_macro_variance.py
_base_ = '../ssd_half_voc.py'

model = dict(terms=dict(hgd=dict(macro='variance', micro='none')))
