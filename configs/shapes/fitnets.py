# The tiny student taught as FitNets are, in two stages: the twin of configs/lectures/fitnets_half_voc.py
# for a laptop. Train configs/shapes/teacher.py first.
#
#   python tools/train.py configs/shapes/fitnets.py
_base_ = './_base_/distill.py'

model = dict(terms=dict(
    hint=dict(type='FitNets', stop=0.3),                            # stage one
    # stage two: the weight of the soft scores falls from 4 to 1
    kd=dict(type='LogitKD', temperature=3.0, warmup=0.3, weight=4.0, end=0.25)))
