# Half-width SSD300 taught by SSD300-VGG16 with fine-grained feature imitation (Wang et al. 2019);
# HGD paper: 65.6 alone, 70.1 mAP (Table 3).
#
#   python tools/train.py configs/rivals/fine_grained_half_voc.py
_base_ = '../_base_/distill_voc_half.py'

model = dict(terms=dict(fine=dict(
    type='FineGrained', psi=0.5, scope='global', weight=0.01, warmup=400)))
optim_wrapper = dict(clip_grad=dict(max_norm=10))
