# Born-Again networks (Furlanello et al. 2018): three generations of half-width SSD300, the first alone, each
# further one with the class scores of the one before. No published number for SSD; HGD paper: the plain
# student 65.6 mAP.
#
#   python tools/train.py configs/lectures/born_again_half_voc.py
#   python tools/test.py configs/lectures/born_again_ensemble_half_voc.py
_base_ = '../_base_/distill_voc_half.py'

generations = 3
model = dict(
    # Its checkpoint is the generation before
    teacher=dict(_delete_=True, model=dict(model={{_base_.model.student}})),
    terms=dict(kd=dict(type='LogitKD', temperature=1.0, weight=1.0)))
