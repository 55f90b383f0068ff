# Half-width SSD300 taught by SSD300-VGG16 with the three losses of Chen et al. 2017: soft scores,
# bounded boxes, hint. No published number for this pair; HGD paper: the plain student 65.6 mAP.
#
#   python tools/train.py configs/chen/ssd_half_voc.py
_base_ = '../_base_/distill_voc_half.py'

model = dict(terms=dict(
    # L_cls = mu L_hard + (1 - mu) L_soft; mu as in ports to SSD
    soft=dict(type='SoftLoss', mu=0.5, background_weight=1.5),
    # the weight is the paper's nu; its margin is not reported
    bounded=dict(type='BoundedRegression', weight=0.5, margin=0.0),
    # the weight is the paper's gamma
    hint=dict(type='Hint', weight=0.5, normalize='channels')))
