# The three losses of Chen et al. 2017: soft scores, bounded boxes, hint.
#
#   hgd-det train shapes --method chen
terms = dict(
    # L_cls = mu L_hard + (1 - mu) L_soft; mu as in ports to SSD
    soft=dict(type='SoftLoss', mu=0.5, background_weight=1.5),
    # the weight is the paper's nu; its margin is not reported
    bounded=dict(type='BoundedRegression', weight=0.5, margin=0.0),
    # the weight is the paper's gamma
    hint=dict(type='Hint', weight=0.5, normalize='channels'))
