# Table 1: imitation at the 150x150 stage alone, without re-weighting; paper: the cell is not in our
# copy (its claim: early stages help at least as much as late ones, all of them most).
#
#   python tools/train.py configs/hgd/ablation/t1_stage_150.py
_base_ = '../ssd_half_voc.py'

model = dict(terms=dict(hgd=dict(macro='none', micro='none', sizes=(150,))))
