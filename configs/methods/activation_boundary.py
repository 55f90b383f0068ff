# Activation boundaries: 20 % of the iterations learn which of the teacher's neurons are on, the rest is plain
# training from there.
#
#   hgd-det train shapes --method activation_boundary
terms = dict(boundary=dict(
    type='ActivationBoundary', margin=1.0, stop=0.2))  # detection begins where imitation ends
