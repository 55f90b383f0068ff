# FitNets-style hints, L2 on the head maps, on photographs of blood cells.
#
#   python tools/train.py configs/bccd/hint.py
_base_ = './_base_/distill.py'

model = dict(terms=dict(hint=dict(type='Hint', weight='auto', ratio=10.0)))  # docs/experiments.md
