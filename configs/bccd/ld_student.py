# The blood-cell student with a distribution head, trained alone: what LD must be compared with.
#
#   python tools/train.py configs/bccd/ld_student.py
_base_ = './student.py'

model = dict(bbox_head=dict(type='DistributionSSDHead', n=16, lo=-8.0, hi=8.0))
