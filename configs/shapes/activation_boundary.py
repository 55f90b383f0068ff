# The tiny student taught with activation boundaries: the twin of
# configs/lectures/activation_boundary_half_voc.py for a laptop. Train configs/shapes/teacher.py first.
#
#   python tools/train.py configs/shapes/activation_boundary.py
_base_ = './_base_/distill.py'

model = dict(terms=dict(boundary=dict(
    type='ActivationBoundary', margin=1.0, stop=0.2)))  # detection begins where imitation ends
