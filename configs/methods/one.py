# Two more heads on the student's trunk, and their gated ensemble teaches each (ONE, Lan et al. 2018).
#
#   hgd-det train shapes --method one
teacher = None
terms = dict(one=dict(type='ONE', branches=3, temperature=3.0, weight=1.0))
