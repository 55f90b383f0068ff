# Hands-on Guidance Distillation on photographs of blood cells. Train configs/bccd/teacher.py first.
#
#   python tools/train.py configs/bccd/hgd.py
_base_ = './_base_/distill.py'

model = dict(terms=dict(hgd=dict(
    type='HGD', distance='cosine', macro='variance', micro='gt_mask',
    weight=100.0, warmup=0.05)))  # docs/experiments.md
