# Half-width SSD300 taught where box sides may lie (localization distillation), with class KD on the
# objects' anchors. No published number on SSD; compare with configs/ld/ssd_half_voc_baseline.py.
# Train configs/ld/ssd300_vgg16_voc.py first.
#
#   python tools/train.py configs/ld/ssd_half_voc.py
_base_ = '../_base_/distill_voc_half.py'

model = dict(
    student=dict(bbox_head=dict(type='DistributionSSDHead', n=16, lo=-8.0, hi=8.0)),
    teacher=dict(
        model='configs/ld/ssd300_vgg16_voc.py', checkpoint='work_dirs/ld/ssd300_vgg16_voc'),
    terms=dict(ld=dict(
        type='LD', main_weight=1.0, vlr_weight=0.25, kd_weight=1.0, temperature=10.0)))
