# Table 4: everything together; paper: 72.6 mAP.
#
#   python tools/train.py configs/hgd/ablation/t4_all.py
_base_ = '../ssd_half_voc.py'

model = dict(terms=dict(hgd=dict()))
