# The tiny student taught with Mimic: the twin of configs/rivals/mimic_half_voc.py for a laptop.
# Train configs/shapes/teacher.py first.
#
#   python tools/train.py configs/shapes/mimic.py
_base_ = './_base_/distill.py'

model = dict(terms=dict(mimic=dict(type='Mimic', weight='auto', ratio=10.0)))  # docs/experiments.md
