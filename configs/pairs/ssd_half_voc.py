# Half-width SSD300 under SSD300-VGG16 on VOC.
# The teacher is the newest checkpoint of its own run. Train it first, or point elsewhere with
# --cfg-options model.teacher.checkpoint=PATH (a file or a work directory).
#
#   hgd-det train ssd_half_voc --method hgd
_base_ = ['../ssd/ssd300_half_voc.py', './values/ssd300.py']

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(model='configs/ssd/ssd300_vgg16_voc.py', checkpoint='work_dirs/ssd/ssd300_vgg16_voc'),
    input_size=300,
    terms=dict())
