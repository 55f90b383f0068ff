# How the objects of a batch lie to one another in the teacher's features (Park et al. 2019). The weights
# are those in use for classification.
#
#   hgd-det train shapes --method relational
terms = dict(relational=dict(
    type='Relational', unit='instance', distance_weight=25.0, angle_weight=50.0))
