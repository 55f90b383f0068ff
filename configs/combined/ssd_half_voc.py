# Half-width SSD300 taught features (HGD), class scores and box bounds (Chen et al.) and where sides
# may lie (LD) at once. No published number; HGD alone in the paper: 72.6 mAP.
# Train configs/ld/ssd300_vgg16_voc.py first.
#
#   python tools/train.py configs/combined/ssd_half_voc.py
_base_ = ['../pairs/ssd_half_voc_ld.py', '../methods/combined.py']

model = dict(terms={{_base_.terms}})
