"""What was tuned on the blood cells, by method; how it was chosen: docs/experiments.md."""

values = dict(
    hgd=dict(terms=dict(hgd=dict(weight=100.0))),
    hint=dict(terms=dict(hint=dict(ratio=10.0))))
