"""`hgd-det inspect` on every config of ours, and on pairs of every family of mmdet's detectors."""
import pytest
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hub import get_config

from hgd_det.cli.inspect import describe, show
from hgd_det.paths import ROOT, read_config

OURS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / 'configs').rglob('*.py')
              if '_base_' not in p.parts and 'model' in read_config(p))
FAMILIES = {    # student, teacher, and what more a term can be told on them
    'RTMDet': ('rtmdet/rtmdet_tiny_8xb32-300e_coco', 'rtmdet/rtmdet_s_8xb32-300e_coco', {}),
    'YOLOX': ('yolox/yolox_tiny_8xb8-300e_coco', 'yolox/yolox_s_8xb8-300e_coco', {}),
    'RetinaNet': ('retinanet/retinanet_r18_fpn_1x_coco', 'retinanet/retinanet_r50_fpn_1x_coco',
                  dict(kd=dict(type='LogitKD'), fine=dict(type='FineGrained'))),
    'FCOS': ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco', 'fcos/fcos_r101-caffe_fpn_gn-head-1x_coco',
             dict(fine=dict(type='FineGrained'))),
    'GFL': ('gfl/gfl_r50_fpn_1x_coco', 'gfl/gfl_r101_fpn_ms-2x_coco', {}),
    'Faster R-CNN': ('faster_rcnn/faster-rcnn_r50_fpn_1x_coco',
                     'faster_rcnn/faster-rcnn_r101_fpn_1x_coco', {}),
    'DETR': ('detr/detr_r18_8xb2-500e_coco', 'detr/detr_r50_8xb2-150e_coco', {}),
}


def test_there_are_configs():
    assert len(OURS) > 20


@pytest.mark.slow
@pytest.mark.parametrize('name', OURS)
def test_every_config_of_ours_is_shown(name):
    facts = describe(read_config(name))
    text = show(dict(facts, config=name))
    assert facts['student']['params'] > 0 and 'parameters' in text
    for term in facts.get('terms', {}).values():
        assert term['needs'] is not None
        assert all(pair['size'] and pair['student'] and pair['teacher'] for pair in term['pairs'])


@pytest.mark.slow
@pytest.mark.parametrize('family', FAMILIES)
def test_pairs_of_mmdets_own_detectors_are_shown(family):
    register_all_modules(init_default_scope=True)
    student, teacher, more = FAMILIES[family]
    student, teacher = (get_config(f'mmdet::{path}.py') for path in (student, teacher))
    for cfg in (student, teacher):
        cfg.model.backbone.init_cfg = None
        cfg.model.get('data_preprocessor', {}).pop('batch_augments', None)
    terms = dict(hgd=dict(type='HGD'), hint=dict(type='Hint'), **more)
    facts = describe(Config(dict(
        input_size=128, default_scope='mmdet',
        model=dict(type='Distiller', student=student.model, input_size=128, terms=terms,
                   teacher=dict(model=dict(model=teacher.model), checkpoint='untrained')))))
    for name, term in facts['terms'].items():
        assert term['pairs'] or 'maps' not in term['needs'], name
        shares = [pair.get('share') for pair in term['pairs']]
        if name in ('hgd', 'hint'):
            assert sum(shares) == pytest.approx(1) and min(shares) >= 0, name
