# The teacher's class logits (Ba & Caruana 2014). The weight on SSD is not known: as large as the
# detection loss over the first 100 iterations.
#
#   hgd-det train shapes --method logit_l2
terms = dict(logits=dict(type='LogitL2', weight='auto'))
