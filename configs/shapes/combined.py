# The tiny student taught with HGD, Chen's soft and bounded losses and LD at once: the twin of
# configs/combined/ssd_half_voc.py for a laptop. Train configs/shapes/ld_teacher.py first.
#
#   python tools/train.py configs/shapes/combined.py
_base_ = './ld.py'

model = dict(terms=dict(
    hgd=dict(type='HGD', distance='cosine', macro='variance', micro='gt_mask',
             weight=100.0, warmup=0.05),  # as in hgd.py
    soft=dict(type='SoftLoss', mu=0.5, background_weight=1.5),
    bounded=dict(type='BoundedRegression', weight=0.5, margin=0.0),
    ld=dict(kd_weight=0.0)))  # the soft loss already teaches the classes
