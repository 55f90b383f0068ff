# The tiny student with a distribution head, trained alone: the twin of
# configs/ld/ssd_half_voc_baseline.py for a laptop.
#
#   hgd-det data shapes data/shapes
#   python tools/train.py configs/shapes/ld_student.py
_base_ = './student.py'

model = dict(bbox_head=dict(type='DistributionSSDHead', n=16, lo=-8.0, hi=8.0))
