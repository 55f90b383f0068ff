# Two tiny students that train together and teach each other: the twin of configs/lectures/dml_half_voc.py
# for a laptop. A larger peer: --cfg-options model.terms.dml.peer=configs/shapes/teacher.py
#
#   python tools/train.py configs/shapes/dml.py
_base_ = './_base_/alone.py'

model = dict(terms=dict(dml=dict(type='DML', temperature=1.0, weight=1.0)))
