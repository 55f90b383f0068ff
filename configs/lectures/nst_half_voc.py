# Half-width SSD300 taught with neuron selectivity transfer on the maps of 38x38 to 3x3 that the heads
# read. No published number for this pair; HGD paper: the plain student 65.6 mAP.
#
#   python tools/train.py configs/lectures/nst_half_voc.py
_base_ = '../_base_/distill_voc_half.py'

model = dict(terms=dict(nst=dict(type='NST', kernel='poly', weight=50.0)))  # RepDistiller's weight
