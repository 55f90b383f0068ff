# Fine-grained feature imitation near objects (Wang et al. 2019), with the authors' weight, warm-up and
# clipping.
#
#   hgd-det train shapes --method fine_grained
terms = dict(fine=dict(type='FineGrained', psi=0.5, scope='global', weight=0.01, warmup=400))
optim_wrapper = dict(clip_grad=dict(max_norm=10))
