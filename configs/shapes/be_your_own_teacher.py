# The tiny student whose deep layers teach its shallow ones: the twin of
# configs/lectures/be_your_own_teacher_half_voc.py for a laptop. There is no teacher to train first.
#
#   python tools/train.py configs/shapes/be_your_own_teacher.py
_base_ = './_base_/alone.py'

model = dict(terms=dict(own=dict(type='BeYourOwnTeacher', alpha=0.1, beta=1e-6, temperature=3.0)))
