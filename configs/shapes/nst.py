# The tiny student taught with neuron selectivity transfer: the twin of
# configs/lectures/nst_half_voc.py for a laptop. Train configs/shapes/teacher.py first.
#
#   python tools/train.py configs/shapes/nst.py
_base_ = './_base_/distill.py'

model = dict(terms=dict(nst=dict(type='NST', kernel='poly', weight=50.0)))
