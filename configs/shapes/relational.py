# The tiny student taught how the objects of a batch lie to one another: the twin of
# configs/lectures/relational_half_voc.py for a laptop. Train configs/shapes/teacher.py first.
#
#   python tools/train.py configs/shapes/relational.py
_base_ = './_base_/distill.py'

model = dict(terms=dict(relational=dict(
    type='Relational', unit='instance', distance_weight=25.0, angle_weight=50.0)))
