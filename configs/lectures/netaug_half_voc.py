# Half-width SSD300 trained also as the leading channels of wider ones, up to the full SSD300, in the first
# half of the iterations (NetAug). Needs no teacher. No published number for SSD; HGD paper: the plain
# student 65.6 mAP.
#
#   python tools/train.py configs/lectures/netaug_half_voc.py
_base_ = '../_base_/alone_voc_half.py'

model = dict(terms=dict(netaug=dict(type='NetAug', weight=1.0, widths=(1.5, 2.0), stop=0.5)))
