# The blood-cell student under its teacher, both with distribution heads.
# Train configs/bccd/ld_teacher.py first.
#
#   hgd-det train bccd_ld --method ld
_base_ = './bccd.py'

model = dict(
    student=dict(bbox_head=dict(type='DistributionSSDHead', n=16, lo=-8.0, hi=8.0)),
    teacher=dict(model='configs/bccd/ld_teacher.py', checkpoint='work_dirs/bccd/ld_teacher'))
