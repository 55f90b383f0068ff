# Half-width SSD300 taught where box sides may lie (localization distillation), with class KD on the
# objects' anchors. No published number on SSD; compare with configs/ld/ssd_half_voc_baseline.py.
# Train configs/ld/ssd300_vgg16_voc.py first.
#
#   python tools/train.py configs/ld/ssd_half_voc.py
_base_ = ['../pairs/ssd_half_voc_ld.py', '../methods/ld.py']

model = dict(terms={{_base_.terms}})
