"""Import this and MMDetection knows every component of ours: models, terms, data sets, metrics, hooks.

Configs do it with ``custom_imports = dict(imports=['hgd_det.registered'])``. What lies below the training's
runner does not import it: whoever reads a config does.
"""

import importlib

import mmdet.models  # noqa: F401

from hgd_det.compat import evaluated, mmdet_fixes, preprocess
from hgd_det.compat.guard import guard_mmengine

COMPONENTS = (
    'models',
    'data.datasets', 'data.ssd_augment', 'data.voc_folders',
    'distill.distiller',
    'evaluation.metrics',
    'training.deferred', 'training.distill_hook', 'training.health', 'training.hooks', 'training.identity',
    'training.log_processor', 'training.progress', 'training.resume', 'training.signals',
)

for _name in COMPONENTS:
    importlib.import_module(f'hgd_det.{_name}')

mmdet_fixes.apply()
evaluated.apply()
preprocess.apply()
guard_mmengine()  # from here on no checkpoint that mmengine reads can run code
