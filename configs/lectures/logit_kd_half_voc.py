# Half-width SSD300 taught the class scores of SSD300-VGG16, softened (Hinton et al. 2015).
# No published number for this pair; HGD paper: the plain student 65.6 mAP.
#
#   python tools/train.py configs/lectures/logit_kd_half_voc.py
_base_ = '../_base_/distill_voc_half.py'

model = dict(terms=dict(kd=dict(type='LogitKD', temperature=4.0, weight=1.0)))
