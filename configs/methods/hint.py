# FitNets-style hints, L2 on the maps that the heads read. No weight is published for detectors: as large as
# the detection loss over the first 100 iterations.
#
#   hgd-det train shapes --method hint
terms = dict(hint=dict(type='Hint', weight='auto'))
