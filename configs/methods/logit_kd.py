# The teacher's class scores, softened (Hinton et al. 2015).
#
#   hgd-det train shapes --method logit_kd
terms = dict(kd=dict(type='LogitKD', temperature=4.0, weight=1.0))
