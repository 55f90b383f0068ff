# Factor transfer on the maps in the middle: the paraphraser learns in the first 10 % of the iterations
# while the student trains alone.
#
#   hgd-det train shapes --method factor_transfer
terms = dict(factor=dict(type='FactorTransfer', rate=0.5, pretrain=0.1, weight=500.0))
