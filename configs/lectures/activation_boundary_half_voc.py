# Half-width SSD300 taught with activation boundaries: 20 % of the iterations learn which of the
# teacher's neurons are on, the rest is plain training from there. No published number for this pair;
# HGD paper: the plain student 65.6 mAP.
#
#   python tools/train.py configs/lectures/activation_boundary_half_voc.py
_base_ = '../_base_/distill_voc_half.py'

model = dict(terms=dict(boundary=dict(
    type='ActivationBoundary', margin=1.0, stop=0.2)))  # detection begins where imitation ends
