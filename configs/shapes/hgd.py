# The tiny student taught with Hands-on Guidance Distillation: the twin of configs/hgd/ssd_half_voc.py
# for a laptop. Train configs/shapes/teacher.py first.
#
#   python tools/train.py configs/shapes/hgd.py
_base_ = './_base_/distill.py'

model = dict(terms=dict(hgd=dict(
    type='HGD', distance='cosine', macro='variance', micro='gt_mask',
    weight=100.0, warmup=0.05)))  # how it was chosen: docs/experiments.md
