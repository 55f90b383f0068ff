# Half-width SSD300 on COCO 2017 taught with Mask Guided; HGD paper, Table 6: 17.1 AP, the plain
# student 16.8.
#
#   python tools/train.py configs/rivals/mask_guided_half_coco.py
_base_ = '../_base_/distill_coco_half.py'

model = dict(terms=dict(mask=dict(
    type='MaskGuided', beta=1.0, stop=0.3)))  # detection begins where imitation ends
