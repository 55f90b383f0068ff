# Neuron selectivity transfer on the maps that the heads read; the weight is RepDistiller's.
#
#   hgd-det train shapes --method nst
terms = dict(nst=dict(type='NST', kernel='poly', weight=50.0))
