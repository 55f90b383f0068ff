# Table 2: stages weighted by mean, places by the ground-truth mask; paper: 72.3 mAP.
#
#   python tools/train.py configs/hgd/ablation/t2_mean_gt.py
_base_ = '../ssd_half_voc.py'

model = dict(terms=dict(hgd=dict(macro='mean', micro='gt_mask')))
