# Half-width SSD300 taught with activation-based attention transfer on the maps of 38x38 to 3x3 that the
# heads read. No published number for this pair; HGD paper: the plain student 65.6 mAP.
#
#   python tools/train.py configs/lectures/attention_transfer_half_voc.py
_base_ = '../_base_/distill_voc_half.py'

# the authors' mode='code', weight=1000 would leave nearly all of it to the 3x3 map
model = dict(terms=dict(attention=dict(type='AttentionTransfer', mode='sum', weight='auto')))
