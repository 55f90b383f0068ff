# Which pixels the teacher's detection loss depends on (gradient-based attention transfer). Train without
# --amp.
#
#   hgd-det train shapes --method gradient_attention
terms = dict(gradient=dict(type='GradientAttention', weight='auto'))
