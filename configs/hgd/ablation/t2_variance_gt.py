# Table 2: stages weighted by variance, places by the ground-truth mask; paper: 72.6 mAP.
#
#   python tools/train.py configs/hgd/ablation/t2_variance_gt.py
_base_ = '../ssd_half_voc.py'

model = dict(terms=dict(hgd=dict(macro='variance', micro='gt_mask')))
