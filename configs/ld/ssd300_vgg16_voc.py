# The teacher for localization distillation on VOC: SSD300-VGG16 whose head predicts 17 bins per
# delta. No published number; the plain SSD300-VGG16 of the HGD paper has 76.7 mAP (11 points).
#
#   python tools/train.py configs/ld/ssd300_vgg16_voc.py \
#       --cfg-options model.backbone.init_cfg.checkpoint=vgg16.pth
#
# The decks' view of 6 bins: model.bbox_head.n=5, here and in both student configs.
_base_ = '../ssd/ssd300_vgg16_voc.py'

model = dict(bbox_head=dict(type='DistributionSSDHead', n=16, lo=-8.0, hi=8.0))
