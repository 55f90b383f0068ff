# Half-width SSD300 taught with FSP: 25 % of the iterations imitate the flow between the 75x75, 38x38,
# 19x19 and 10x10 maps, the rest is plain training from there. No published number for this pair; HGD
# paper: the plain student 65.6 mAP.
#
#   python tools/train.py configs/lectures/fsp_half_voc.py
_base_ = '../_base_/distill_voc_half.py'

model = dict(terms=dict(fsp=dict(
    type='FSP', pool='max', weight='auto', stop=0.25)))  # detection begins where imitation ends
