# The tiny student taught where box sides may lie: the twin of configs/ld/ssd_half_voc.py for a
# laptop. Train configs/shapes/ld_teacher.py first.
#
#   python tools/train.py configs/shapes/ld.py
_base_ = './_base_/distill.py'

model = dict(
    student=dict(bbox_head=dict(type='DistributionSSDHead', n=16, lo=-8.0, hi=8.0)),
    teacher=dict(model='configs/shapes/ld_teacher.py', checkpoint='work_dirs/shapes/ld_teacher'),
    terms=dict(ld=dict(
        type='LD', main_weight=1.0, vlr_weight=0.25, kd_weight=1.0, temperature=10.0)))
