# Table 4: + hands-on (every feature map, no selection), L2; paper: 68.3 mAP.
#
#   python tools/train.py configs/hgd/ablation/t4_hands_on.py
_base_ = '../ssd_half_voc.py'

model = dict(terms=dict(hgd=dict(distance='l2', select='all', macro='none', micro='none')))
