"""What was tuned on the built-in shapes, by method; how it was chosen: docs/experiments.md."""

values = dict(
    hgd=dict(terms=dict(hgd=dict(weight=100.0))),
    combined=dict(terms=dict(hgd=dict(weight=100.0))),  # as alone
    hint=dict(terms=dict(hint=dict(ratio=10.0))),
    mimic=dict(terms=dict(mimic=dict(ratio=10.0))),
    # the authors' 400 iterations of warm-up would be most of these 500 steps
    fine_grained=dict(terms=dict(fine=dict(weight=1.0, warmup=0.05))))
