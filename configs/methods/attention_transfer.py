# Activation-based attention transfer on the maps that the heads read. The authors' mode='code', weight=1000
# would leave nearly all of it to the smallest map.
#
#   hgd-det train shapes --method attention_transfer
terms = dict(attention=dict(type='AttentionTransfer', mode='sum', weight='auto'))
