"""The blood-cell student under its teacher; a config adds its terms."""
_base_ = '../student.py'

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(model='configs/bccd/teacher.py', checkpoint='work_dirs/bccd/teacher'),
    input_size=160,
    terms=dict())
