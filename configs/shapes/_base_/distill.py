"""The tiny student under the tiny teacher on the built-in shapes; a config adds its terms.

The teacher is the newest checkpoint of its own run (`configs/shapes/teacher.py`), or
`--cfg-options model.teacher.checkpoint=PATH`.
"""
_base_ = '../student.py'

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(model='configs/shapes/teacher.py', checkpoint='work_dirs/shapes/teacher'),
    input_size=96,
    terms=dict())
