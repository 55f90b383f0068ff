# The three losses of Chen et al. 2017 on photographs of blood cells. Train configs/bccd/teacher.py first.
#
#   python tools/train.py configs/bccd/chen.py
_base_ = './_base_/distill.py'

model = dict(terms=dict(
    soft=dict(type='SoftLoss', mu=0.5, background_weight=1.5),
    bounded=dict(type='BoundedRegression', weight=0.5, margin=0.0),
    hint=dict(type='Hint', weight=0.5, normalize='channels')))
