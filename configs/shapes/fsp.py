# The tiny student taught with FSP: the twin of configs/lectures/fsp_half_voc.py for a laptop. Train
# configs/shapes/teacher.py first.
#
#   python tools/train.py configs/shapes/fsp.py
_base_ = './_base_/distill.py'

model = dict(terms=dict(fsp=dict(
    type='FSP', pool='max', weight='auto', stop=0.25)))  # detection begins where imitation ends
