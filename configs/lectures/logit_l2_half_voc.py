# Half-width SSD300 taught the class logits of SSD300-VGG16 (Ba & Caruana 2014).
# No published number for this pair; HGD paper: the plain student 65.6 mAP.
#
#   python tools/train.py configs/lectures/logit_l2_half_voc.py
_base_ = '../_base_/distill_voc_half.py'

# the weight on SSD is not known: as large as the detection loss over the first 100 iterations
model = dict(terms=dict(logits=dict(type='LogitL2', weight='auto')))
