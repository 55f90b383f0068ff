# Table 2: stages weighted by focal, places alike; paper: 71.1 mAP.
#
#   python tools/train.py configs/hgd/ablation/t2_macro_focal.py
_base_ = '../ssd_half_voc.py'

model = dict(terms=dict(hgd=dict(macro='focal', micro='none')))
