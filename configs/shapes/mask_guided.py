# The tiny student taught with Mask Guided: the twin of configs/rivals/mask_guided_half_voc.py
# for a laptop. Train configs/shapes/teacher.py first.
#
#   python tools/train.py configs/shapes/mask_guided.py
_base_ = './_base_/distill.py'

model = dict(terms=dict(mask=dict(
    type='MaskGuided', beta=1.0, stop=0.3)))  # detection begins where imitation ends
