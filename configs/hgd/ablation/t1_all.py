# Table 1: all stages, without re-weighting; paper: 71.4 mAP (from Table 4).
#
#   python tools/train.py configs/hgd/ablation/t1_all.py
_base_ = '../ssd_half_voc.py'

model = dict(terms=dict(hgd=dict(macro='none', micro='none')))
