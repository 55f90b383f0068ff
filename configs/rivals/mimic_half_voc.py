# Half-width SSD300 taught with Mimic: features pooled in the objects' and the teacher's boxes.
# No published number for this pair; HGD paper: the plain student 65.6 mAP.
#
#   python tools/train.py configs/rivals/mimic_half_voc.py
_base_ = '../_base_/distill_voc_half.py'

# the weight on SSD is not known: as large as the detection loss over the first 100 iterations
model = dict(terms=dict(mimic=dict(type='Mimic', weight='auto')))
