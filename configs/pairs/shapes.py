# The tiny student under the tiny teacher on the built-in shapes.
# The teacher is the newest checkpoint of its own run. Train it first, or point elsewhere with
# --cfg-options model.teacher.checkpoint=PATH (a file or a work directory).
#
#   hgd-det train shapes --method hgd
_base_ = ['../shapes/student.py', './values/shapes.py']

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(model='configs/shapes/teacher.py', checkpoint='work_dirs/shapes/teacher'),
    input_size=96,
    terms=dict())
