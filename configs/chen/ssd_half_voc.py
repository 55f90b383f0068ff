# Half-width SSD300 taught by SSD300-VGG16 with the three losses of Chen et al. 2017: soft scores,
# bounded boxes, hint. No published number for this pair; HGD paper: the plain student 65.6 mAP.
#
#   python tools/train.py configs/chen/ssd_half_voc.py
_base_ = ['../pairs/ssd_half_voc.py', '../methods/chen.py']

model = dict(terms={{_base_.terms}})
