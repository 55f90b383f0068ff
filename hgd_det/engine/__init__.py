"""Training and evaluation around the models: checkpoints, hooks, metrics, building a run.

`metrics` and `hooks` register with mmdet and mmengine when they are imported (`hgd_det.registered`
does it).
"""
