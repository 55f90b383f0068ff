# The tiny teacher with a distribution head: the twin of configs/ld/ssd300_vgg16_voc.py for a
# laptop.
#
#   hgd-det data shapes data/shapes
#   python tools/train.py configs/shapes/ld_teacher.py
_base_ = './teacher.py'

model = dict(bbox_head=dict(type='DistributionSSDHead', n=16, lo=-8.0, hi=8.0))
