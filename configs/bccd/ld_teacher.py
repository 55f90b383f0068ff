# The blood-cell teacher with a distribution head.
#
#   python tools/train.py configs/bccd/ld_teacher.py
_base_ = './teacher.py'

model = dict(bbox_head=dict(type='DistributionSSDHead', n=16, lo=-8.0, hi=8.0))
