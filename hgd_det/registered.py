"""Import this and MMDetection knows every component of ours: models, terms, data sets, metrics, hooks.

Configs do it with ``custom_imports = dict(imports=['hgd_det.registered'])``.
"""

import mmdet.models  # noqa: F401

import hgd_det.data.datasets
import hgd_det.data.ssd_augment
import hgd_det.data.voc_folders
import hgd_det.distill.distiller
import hgd_det.engine.distill_hook
import hgd_det.engine.hooks
import hgd_det.engine.log_processor
import hgd_det.engine.metrics
import hgd_det.engine.progress
import hgd_det.models  # noqa: F401
from hgd_det.compat import mmdet_fixes, preprocess
from hgd_det.compat.guard import guard_mmengine

mmdet_fixes.apply()
preprocess.apply()
guard_mmengine()  # from here on no checkpoint that mmengine reads can run code

