# SSD300-VGG11 under SSD300-VGG16 on VOC. Train configs/ssd/ssd300_vgg16_voc.py first.
#
#   hgd-det train ssd_vgg11_voc --method hgd
_base_ = ['../ssd/ssd300_vgg11_voc.py', './values/ssd300.py']

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(model='configs/ssd/ssd300_vgg16_voc.py', checkpoint='work_dirs/ssd/ssd300_vgg16_voc'),
    input_size=300,
    terms=dict())
