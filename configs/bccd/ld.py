# Localization distillation on photographs of blood cells. Train configs/bccd/ld_teacher.py first.
#
#   python tools/train.py configs/bccd/ld.py
_base_ = './_base_/distill.py'

model = dict(
    student=dict(bbox_head=dict(type='DistributionSSDHead', n=16, lo=-8.0, hi=8.0)),
    teacher=dict(model='configs/bccd/ld_teacher.py', checkpoint='work_dirs/bccd/ld_teacher'),
    terms=dict(ld=dict(
        type='LD', main_weight=1.0, vlr_weight=0.25, kd_weight=1.0, temperature=10.0)))
