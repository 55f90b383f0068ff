"""The half-width student under SSD300-VGG16 on COCO; a config adds its terms.

The teacher is the newest checkpoint of its own run. Train it first, or point elsewhere with
`--cfg-options model.teacher.checkpoint=PATH` (a file or a work directory).
"""

_base_ = '../ssd/ssd300_half_coco.py'

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(model='configs/ssd/ssd300_vgg16_coco.py', checkpoint='work_dirs/ssd/ssd300_vgg16_coco'),
    input_size=300,
    terms=dict())
