# Mimic: features pooled in the objects' and the teacher's boxes. The weight on SSD is not known: as large as
# the detection loss over the first 100 iterations.
#
#   hgd-det train shapes --method mimic
terms = dict(mimic=dict(type='Mimic', weight='auto'))
