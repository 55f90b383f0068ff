# Table 2: stages weighted by focal, places by the ground-truth mask; paper: 72.2 mAP.
#
#   python tools/train.py configs/hgd/ablation/t2_focal_gt.py
_base_ = '../ssd_half_voc.py'

model = dict(terms=dict(hgd=dict(macro='focal', micro='gt_mask')))
