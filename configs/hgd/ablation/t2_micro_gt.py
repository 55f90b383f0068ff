# Table 2: places weighted by gt_mask, stages alike; paper: 72.2 mAP.
#
#   python tools/train.py configs/hgd/ablation/t2_micro_gt.py
_base_ = '../ssd_half_voc.py'

model = dict(terms=dict(hgd=dict(macro='none', micro='gt_mask')))
