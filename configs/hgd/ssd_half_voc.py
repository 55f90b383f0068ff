# Half-width SSD300 taught with Hands-on Guidance Distillation, the paper's best choice of its tables:
# cosine distance, all stages, macro variance x micro gt_mask; paper: 65.6 alone, 72.6 mAP (11 points).
#
#   python tools/train.py configs/hgd/ssd_half_voc.py
_base_ = '../_base_/distill_voc_half.py'

model = dict(terms=dict(hgd=dict(
    type='HGD', distance='cosine', macro='variance', micro='gt_mask',
    weight='auto', warmup=0.05)))

# "slightly more" iterations than the student alone: a fifth, the milestones moved alike
train_cfg = dict(max_epochs=29)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, milestones=[19, 24], gamma=0.1),
]
