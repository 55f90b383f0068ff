# FSP: 25 % of the iterations imitate the flow from stage to stage, the rest is plain training from there.
#
#   hgd-det train shapes --method fsp
terms = dict(fsp=dict(
    type='FSP', pool='max', weight='auto', stop=0.25))  # detection begins where imitation ends
