# Features (HGD), class scores and box bounds (Chen et al.) and where sides may lie (LD) at once.
#
#   hgd-det train shapes_ld --method combined
_base_ = './hgd.py'

terms = dict(
    soft=dict(type='SoftLoss', mu=0.5, background_weight=1.5),
    bounded=dict(type='BoundedRegression', weight=0.5, margin=0.0),
    # kd_weight=0: the soft loss already teaches the classes
    ld=dict(type='LD', main_weight=1.0, vlr_weight=0.25, kd_weight=0.0, temperature=10.0))
