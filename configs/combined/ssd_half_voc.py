# Half-width SSD300 taught features (HGD), class scores and box bounds (Chen et al.) and where sides
# may lie (LD) at once. No published number; HGD alone in the paper: 72.6 mAP.
# Train configs/ld/ssd300_vgg16_voc.py first.
#
#   python tools/train.py configs/combined/ssd_half_voc.py
_base_ = '../ld/ssd_half_voc.py'

model = dict(terms=dict(
    hgd=dict(type='HGD', distance='cosine', macro='variance', micro='gt_mask',
             weight='auto', warmup=0.05),
    soft=dict(type='SoftLoss', mu=0.5, background_weight=1.5),
    bounded=dict(type='BoundedRegression', weight=0.5, margin=0.0),
    ld=dict(kd_weight=0.0)))  # the soft loss already teaches the classes
