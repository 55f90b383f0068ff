"""The tiny student on the built-in shapes with terms that need no teacher; a config adds them."""
_base_ = '../student.py'

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    input_size=96,
    terms=dict())
