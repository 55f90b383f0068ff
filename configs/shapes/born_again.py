# Born-Again networks (Furlanello et al. 2018): three generations of the tiny student, the first alone, each
# further one with the class scores of the one before. The twin of configs/lectures/born_again_half_voc.py
# for a laptop; no teacher to train first.
#
#   python tools/train.py configs/shapes/born_again.py
#   python tools/test.py configs/shapes/born_again_ensemble.py
_base_ = './_base_/distill.py'

generations = 3
model = dict(
    # Its checkpoint is the generation before
    teacher=dict(_delete_=True, model=dict(model={{_base_.model.student}})),
    terms=dict(kd=dict(type='LogitKD', temperature=1.0, weight=1.0)))
