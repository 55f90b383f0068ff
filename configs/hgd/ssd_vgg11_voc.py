# SSD300-VGG11 taught with Hands-on Guidance Distillation, the paper's best choice of its tables:
# cosine distance, all stages, macro variance x micro gt_mask; paper: 72.7 alone, 74.9 mAP (11 points).
#
#   python tools/train.py configs/hgd/ssd_vgg11_voc.py
_base_ = ['../pairs/ssd_vgg11_voc.py', '../methods/hgd.py']

model = dict(terms={{_base_.terms}})
train_cfg = {{_base_.values.hgd.train_cfg}}
param_scheduler = {{_base_.values.hgd.param_scheduler}}
