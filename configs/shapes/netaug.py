# The tiny student trained also as the leading channels of wider detectors (NetAug): the twin of
# configs/lectures/netaug_half_voc.py for a laptop. Needs no teacher.
#
#   python tools/train.py configs/shapes/netaug.py
_base_ = './_base_/alone.py'

model = dict(terms=dict(netaug=dict(type='NetAug', weight=1.0, widths=(1.5, 2.0), stop=0.5)))
