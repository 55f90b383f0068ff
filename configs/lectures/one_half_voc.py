# Half-width SSD300 with two more heads on its trunk, taught by their gated ensemble, without a teacher
# (ONE, Lan et al. 2018). No published number for SSD; HGD paper: the plain student 65.6 mAP.
#
#   python tools/train.py configs/lectures/one_half_voc.py
_base_ = '../_base_/alone_voc_half.py'

model = dict(terms=dict(one=dict(type='ONE', branches=3, temperature=3.0, weight=1.0)))
