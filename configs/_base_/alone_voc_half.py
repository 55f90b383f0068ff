"""The half-width student on VOC with terms that need no teacher; a config adds them."""

_base_ = '../ssd/ssd300_half_voc.py'

model = dict(
    _delete_=True,
    type='Distiller',
    student={{_base_.model}},
    input_size=300,
    terms=dict())
