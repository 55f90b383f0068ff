# Two half-width SSD300 that train together and teach each other (Deep Mutual Learning, Zhang et al. 2018);
# no teacher. No published number for this pair; HGD paper: the plain student 65.6 mAP.
#
#   python tools/train.py configs/lectures/dml_half_voc.py
#   hgd-det export configs/lectures/dml_half_voc.py CHECKPOINT out --peer dml    # the other of the two
_base_ = '../_base_/alone_voc_half.py'

model = dict(terms=dict(dml=dict(type='DML', temperature=1.0, weight=1.0)))
