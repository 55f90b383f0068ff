# Mask Guided: 30 % of the iterations imitate features only, the rest is plain training from there.
#
#   hgd-det train shapes --method mask_guided
terms = dict(mask=dict(type='MaskGuided', beta=1.0, stop=0.3))  # detection begins where imitation ends
