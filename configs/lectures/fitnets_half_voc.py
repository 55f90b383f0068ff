# Half-width SSD300 taught as FitNets are: 30 % of the iterations fit its layers up to the 38x38 map to
# the teacher's, the rest trains the whole detector with the teacher's soft scores. No published number
# for this pair; HGD paper: the plain student 65.6 mAP, hints on six maps beside detection 68.2.
#
#   python tools/train.py configs/lectures/fitnets_half_voc.py
_base_ = '../_base_/distill_voc_half.py'

model = dict(terms=dict(
    hint=dict(type='FitNets', stop=0.3),                            # stage one
    # stage two: the weight of the soft scores falls from 4 to 1
    kd=dict(type='LogitKD', temperature=3.0, warmup=0.3, weight=4.0, end=0.25)))
