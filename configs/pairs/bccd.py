# The blood-cell student under its teacher, on photographs. Train configs/bccd/teacher.py first.
#
#   hgd-det train bccd --method hgd
_base_ = ['../bccd/student.py', './values/bccd.py']

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    teacher=dict(model='configs/bccd/teacher.py', checkpoint='work_dirs/bccd/teacher'),
    input_size=160,
    terms=dict())
