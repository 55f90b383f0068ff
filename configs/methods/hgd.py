# Hands-on Guidance Distillation, the best choice of the paper's tables: cosine distance, all stages, macro
# variance x micro gt_mask. The paper's weight makes the losses equal in order of magnitude: auto.
#
#   hgd-det train ssd_half_voc --method hgd
terms = dict(hgd=dict(
    type='HGD', distance='cosine', macro='variance', micro='gt_mask', weight='auto', warmup=0.05))
