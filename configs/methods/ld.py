# Where box sides may lie (localization distillation), with class KD on the objects' anchors. Both detectors
# need distribution heads.
#
#   hgd-det train shapes_ld --method ld
terms = dict(ld=dict(
    type='LD', main_weight=1.0, vlr_weight=0.25, kd_weight=1.0, temperature=10.0))
