# The tiny student under the tiny teacher on the built-in shapes, both with distribution heads.
# Train configs/shapes/ld_teacher.py first.
#
#   hgd-det train shapes_ld --method ld
_base_ = './shapes.py'

model = dict(
    student=dict(bbox_head=dict(type='DistributionSSDHead', n=16, lo=-8.0, hi=8.0)),
    teacher=dict(model='configs/shapes/ld_teacher.py', checkpoint='work_dirs/shapes/ld_teacher'))
