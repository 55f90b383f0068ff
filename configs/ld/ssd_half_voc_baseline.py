# Half-width SSD300 with the distribution head, without a teacher: what LD must be compared with, as
# the head alone (DFL, 17 times the box outputs) changes the result. No published number; the HGD
# paper's half-width SSD300 has 65.6 mAP with a plain head.
#
#   python tools/train.py configs/ld/ssd_half_voc_baseline.py
_base_ = '../ssd/ssd300_half_voc.py'

model = dict(bbox_head=dict(type='DistributionSSDHead', n=16, lo=-8.0, hi=8.0))
