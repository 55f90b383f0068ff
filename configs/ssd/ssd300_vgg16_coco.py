# The teacher on COCO 2017; paper: 23.4 AP.
#
#   python tools/train.py configs/ssd/ssd300_vgg16_coco.py \
#       --cfg-options model.backbone.init_cfg.checkpoint=vgg16.pth
#
# On the VGG16 file see ssd300_vgg16_voc.py; without one: model.backbone.init_cfg=None trains from
# scratch.
_base_ = [
    '../_base_/models/ssd300_vgg16.py', '../_base_/datasets/coco.py',
    '../_base_/schedule_120e.py', '../_base_/runtime.py',
]

model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='data/vgg16_caffe.pth')),
    bbox_head=dict(num_classes=80, anchor_generator=dict(basesize_ratio_range=(0.15, 0.9))))
