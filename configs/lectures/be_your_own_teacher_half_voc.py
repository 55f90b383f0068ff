# Half-width SSD300 whose deep layers teach its shallow ones; no teacher (Zhang et al. 2019).
# No published number for a detector of this kind; HGD paper: the plain student 65.6 mAP.
#
#   python tools/train.py configs/lectures/be_your_own_teacher_half_voc.py
_base_ = '../_base_/alone_voc_half.py'

model = dict(terms=dict(own=dict(type='BeYourOwnTeacher', alpha=0.1, beta=1e-6, temperature=3.0)))
