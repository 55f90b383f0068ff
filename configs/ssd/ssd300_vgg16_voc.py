# The teacher on VOC 2007+2012; paper: 76.7 mAP on 2007 test (11 points).
#
#   python tools/train.py configs/ssd/ssd300_vgg16_voc.py \
#       --cfg-options model.backbone.init_cfg.checkpoint=vgg16.pth
#
# It starts from VGG16 weights trained on ImageNet. Accepted are files with MMDetection's,
# torchvision's or the SSD ports' key names; the images must then be normalised as those weights
# expect. The default below is Caffe's way (RGB, mean subtracted, 0..255); for torchvision's file
# add model.data_preprocessor.std=58.395,57.12,57.375. Without such a file:
# model.backbone.init_cfg=None trains from scratch.
_base_ = [
    '../_base_/models/ssd300_vgg16.py', '../_base_/datasets/voc0712.py',
    '../_base_/schedule_120e.py', '../_base_/runtime.py',
]

model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='data/vgg16_caffe.pth')))
