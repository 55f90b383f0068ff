# Half-width SSD300 under SSD300-VGG16 on VOC, both with distribution heads.
# Train configs/ld/ssd300_vgg16_voc.py first.
#
#   hgd-det train ssd_half_voc_ld --method ld
_base_ = './ssd_half_voc.py'

model = dict(
    student=dict(bbox_head=dict(type='DistributionSSDHead', n=16, lo=-8.0, hi=8.0)),
    teacher=dict(model='configs/ld/ssd300_vgg16_voc.py', checkpoint='work_dirs/ld/ssd300_vgg16_voc'))
