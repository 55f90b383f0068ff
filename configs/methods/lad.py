# The teacher picks the student's anchors: label assignment distillation (Nguyen et al. 2022).
#
#   hgd-det train shapes --method lad
terms = dict(lad=dict(type='LAD', select='gmm', iou=0.3, per_level=9))
