# The tiny student with two more heads on its trunk, taught by their gated ensemble: the twin of
# configs/lectures/one_half_voc.py for a laptop. It needs no teacher.
#
#   python tools/train.py configs/shapes/one.py
_base_ = './_base_/alone.py'

model = dict(terms=dict(one=dict(type='ONE', branches=3, temperature=3.0, weight=1.0)))
