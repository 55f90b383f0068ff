# As FitNets are taught: 30 % of the iterations fit the student's layers up to one map to the teacher's,
# the rest trains the whole detector with the teacher's soft scores.
#
#   hgd-det train shapes --method fitnets
terms = dict(
    hint=dict(type='FitNets', stop=0.3),                            # stage one
    # stage two: the weight of the soft scores falls from 4 to 1
    kd=dict(type='LogitKD', temperature=3.0, warmup=0.3, weight=4.0, end=0.25))
