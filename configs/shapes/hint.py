# The tiny student taught with FitNets-style hints: the twin of configs/rivals/hint_half_voc.py
# for a laptop. Train configs/shapes/teacher.py first.
#
#   python tools/train.py configs/shapes/hint.py
_base_ = './_base_/distill.py'

model = dict(terms=dict(hint=dict(type='Hint', weight='auto', ratio=10.0)))  # docs/experiments.md
