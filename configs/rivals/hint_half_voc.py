# Half-width SSD300 taught by SSD300-VGG16 with FitNets-style hints on the six maps that the heads
# read; HGD paper: 65.6 alone, 68.2 mAP (Table 3; 68.1 in Table 4).
#
#   python tools/train.py configs/rivals/hint_half_voc.py
_base_ = '../_base_/distill_voc_half.py'

# no weight is published: as large as the detection loss over the first 100 iterations
model = dict(terms=dict(hint=dict(type='Hint', weight='auto')))
