# Table 2: stages weighted by attention, places alike; paper: 67.1 mAP.
#
#   python tools/train.py configs/hgd/ablation/t2_macro_attention.py
_base_ = '../ssd_half_voc.py'

model = dict(terms=dict(hgd=dict(macro='attention', micro='none')))
