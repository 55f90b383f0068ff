"""What a teacher's `model=` may be."""
import copy

import pytest
import torch
from mmengine.config import Config, ConfigDict

from hgd_det.distill.sources import KINDS, config_of_file, resolve
from hgd_det.errors import UserError
from hgd_det.testing import tiny_ssd

CONFIG = Config(dict(model=tiny_ssd(), input_size=96, custom_imports=dict(imports=['os'])))


@pytest.fixture
def run(tmp_path):
    """A run's folder: two checkpoints, and one whose writing was cut off."""
    for number in (1, 2):
        torch.save(dict(state_dict={'w': torch.zeros(number)}, optimizer={}, message_hub={},
                        meta=dict(cfg=CONFIG.pretty_text)), tmp_path / f'epoch_{number}.pth')
    (tmp_path / 'epoch_3.pth').write_bytes(b'PK')
    return tmp_path


def test_a_dict_is_a_config_or_its_model():
    for given in (CONFIG, dict(model=tiny_ssd()), tiny_ssd(), ConfigDict(tiny_ssd())):
        source = resolve(copy.deepcopy(given))
        assert source.model['type'] == 'SingleStageDetector' and source.checkpoint is None


def test_a_path_is_a_config_and_implies_no_weights():
    source = resolve('configs/shapes/teacher.py')
    assert source.config.input_size == 96 and source.checkpoint is None
    assert source.name.endswith('shapes/teacher.py')


def test_of_a_distilled_student_its_plain_self_is_meant():
    assert resolve('configs/pairs/shapes.py').model['type'] == 'SingleStageDetector'


def test_a_folder_is_its_newest_intact_checkpoint_and_the_config_in_it(run):
    source = resolve(run)
    assert source.name == source.checkpoint == str(run / 'epoch_2.pth')
    assert source.model == CONFIG.model and source.config.input_size == 96


def test_a_checkpoint_is_the_config_that_it_carries_without_its_imports(run):
    source = resolve(str(run / 'epoch_1.pth'))
    assert source.checkpoint == str(run / 'epoch_1.pth') and source.model == CONFIG.model
    assert 'custom_imports' not in source.config


def test_nothing_in_a_file_is_executed(tmp_path):
    text = f'import os\nos.mkdir({str(tmp_path / "harm")!r})\nmodel = dict(type="SSD")'
    torch.save(dict(state_dict={}, meta=dict(cfg=text)), tmp_path / 'a.pth')
    with pytest.raises(UserError, match='more than plain values'):
        resolve(tmp_path / 'a.pth')
    assert not (tmp_path / 'harm').exists()


@pytest.mark.parametrize('change', [
    dict(type='os.mkdir'), dict(neck=dict(type='canary.Neck')), dict(test_cfg=dict(nms=dict(type='exec')))])
def test_a_config_out_of_a_file_passes_the_gate(tmp_path, change):
    cfg = Config(dict(model=dict(tiny_ssd(), **change))).pretty_text
    torch.save(dict(state_dict={}, meta=dict(cfg=cfg)), tmp_path / 'a.pth')
    with pytest.raises(UserError, match='the config inside .*a.pth was refused: model'):
        resolve(tmp_path / 'a.pth')


def test_of_a_distillations_checkpoint_the_student_is_meant(tmp_path):
    distilled = dict(type='Distiller', student=tiny_ssd(), teacher=dict(model='their/own.py'), terms={})
    meta = dict(cfg=Config(dict(model=distilled)).pretty_text)
    torch.save(dict(state_dict={}, meta=meta), tmp_path / 'a.pth')
    assert resolve(tmp_path / 'a.pth').model == CONFIG.model


def test_safetensors_carry_theirs_in_the_header(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    import json
    meta = {'hgd_det': json.dumps(dict(cfg=CONFIG.pretty_text))}
    safetensors.save_file({'w': torch.zeros(1)}, tmp_path / 'a.safetensors', meta)
    assert config_of_file(str(tmp_path / 'a.safetensors')).model == CONFIG.model


@pytest.mark.parametrize('model, said', [
    ('mmdet::gfl/gfl_r101_fpn_ms-2x_coco', "model='mmdet::.* is nothing that is here"),
    ('work_dirs/never/trained', 'is nothing that is here'),
    ('https://somewhere/teacher.pth', 'is nothing that is here'),
    (7, 'is nothing that is here'),
    ('configs/ssd/ssd300_vgg61_voc.py', 'near names: .*ssd300_vgg16_voc'),
    ('nowhere.pth', 'nowhere.pth does not exist'),
    (dict(model=None), 'has no model'),
    (dict(model=dict(backbone={})), 'has no model'),
])
def test_what_is_of_no_kind_is_refused(model, said):
    with pytest.raises(UserError, match=said) as refused:
        resolve(model)
    if 'nothing' in said:    # every kind is named
        assert all(kind.words in str(refused.value) for kind in KINDS)


def test_files_that_carry_no_config_and_folders_without_checkpoints_are_refused(tmp_path):
    torch.save(dict(state_dict={}), tmp_path / 'best.pth')
    with pytest.raises(UserError, match="does not say which config.*model=CONFIG, checkpoint='.*best.pth'"):
        resolve(tmp_path / 'best.pth')
    with pytest.raises(UserError, match='holds no intact checkpoint'):
        resolve(tmp_path)
