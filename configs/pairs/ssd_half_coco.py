# Half-width SSD300 under SSD300-VGG16 on COCO 2017. Train configs/ssd/ssd300_vgg16_coco.py first.
#
#   hgd-det train ssd_half_coco --method hgd
_base_ = ['../ssd/ssd300_half_coco.py', './values/ssd300.py']

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(model='configs/ssd/ssd300_vgg16_coco.py', checkpoint='work_dirs/ssd/ssd300_vgg16_coco'),
    input_size=300,
    terms=dict())
