# The student trains also as the leading channels of wider ones, in the first half of the iterations
# (NetAug).
#
#   hgd-det train shapes --method netaug
teacher = None
terms = dict(netaug=dict(type='NetAug', weight=1.0, widths=(1.5, 2.0), stop=0.5))
