# Half-width SSD300 taught how the objects of a batch lie to one another in the features of
# SSD300-VGG16 (Park et al. 2019). No published number for this pair; HGD paper: the plain student
# 65.6 mAP.
#
#   python tools/train.py configs/lectures/relational_half_voc.py
_base_ = '../_base_/distill_voc_half.py'

# the weights are those in use for classification
model = dict(terms=dict(relational=dict(
    type='Relational', unit='instance', distance_weight=25.0, angle_weight=50.0)))
