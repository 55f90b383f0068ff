# Half-width SSD300 taught with Mask Guided: 30 % of the iterations imitate features only, the rest
# is plain training from there; HGD paper, Table 3: 70.2 mAP, the plain student 65.6.
#
#   python tools/train.py configs/rivals/mask_guided_half_voc.py
_base_ = '../_base_/distill_voc_half.py'

model = dict(terms=dict(mask=dict(
    type='MaskGuided', beta=1.0, stop=0.3)))  # detection begins where imitation ends
