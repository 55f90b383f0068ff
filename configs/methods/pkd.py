# Pearson correlation of channels (Cao et al. 2022) on the maps that the heads read; the authors' weight for
# RetinaNet.
#
#   hgd-det train shapes --method pkd
terms = dict(pkd=dict(type='PKD', weight=10.0))
