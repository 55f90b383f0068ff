"""The student comes out of checkpoints of every kind; what does not fit is refused."""
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from hgd_det.deploy.student import fixed_size, load_student
from hgd_det.distill.distiller import Distiller
from hgd_det.errors import UserError
from hgd_det.testing import make_student, tiny_ssd

pytestmark = pytest.mark.thorough


def save(path, state, cfg=None, classes=('a', 'b', 'c'), **more):
    meta = dict(iter=7, dataset_meta=dict(classes=classes))
    if cfg is not None:
        meta['cfg'] = cfg if isinstance(cfg, str) else Config(cfg).pretty_text
    torch.save(dict(state_dict=state, meta=meta, **more), path)
    return path


@pytest.fixture
def plain():
    return make_student(tiny_ssd())


def distilling():
    student, teacher = tiny_ssd(1 / 32), tiny_ssd(1 / 16)
    return dict(model=dict(type='Distiller', student=student, input_size=96,
                           teacher=dict(model=dict(model=teacher), checkpoint='untrained'),
                           terms=dict(hgd=dict(type='HGD'))),
                custom_hooks=[dict(type='DistillHook')], custom_imports=dict(imports=['not_there']))


def test_a_plain_checkpoint_needs_no_config(plain, tmp_path):
    path = save(tmp_path / 'a.pth', plain.detector.state_dict(), plain.config.to_dict())
    found = load_student(path)
    assert found.classes == ('a', 'b', 'c') and found.input_size == (96, 96) and found.meta['iter'] == 7
    assert not found.detector.training and not found.taught
    for key, value in plain.detector.state_dict().items():
        assert torch.equal(found.detector.state_dict()[key], value)


def test_of_a_distillation_only_the_student_is_built(tmp_path):
    cfg = distilling()
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = Distiller(**{k: v for k, v in cfg['model'].items() if k != 'type'})
    state = model.state_dict()
    assert any(k.startswith('distill.') for k in state)
    found = load_student(save(tmp_path / 'a.pth', state, cfg))
    assert type(found.detector).__name__ == 'SingleStageDetector'
    assert list(found.detector.state_dict()) == [k for k in state if not k.startswith('distill.')]
    assert found.taught['terms'] == {'hgd': 'HGD'}
    assert found.config.custom_hooks == []


def mutual(tmp_path, peer=None):
    """The config of two detectors that teach each other, the model, and a checkpoint of it."""
    cfg = dict(model=dict(type='Distiller', student=tiny_ssd(1 / 32), input_size=96,
                          terms=dict(dml=dict(type='DML', **({} if peer is None else dict(peer=peer))))),
               custom_hooks=[dict(type='DistillHook')])
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = Distiller(**{k: v for k, v in cfg['model'].items() if k != 'type'})
    state = model.state_dict()
    beside = {k: state.pop(k) for k in list(state) if k.startswith('distill.')}     # as the hook does
    return cfg, model, save(tmp_path / 'a.pth', state, cfg, distill=beside)


@pytest.mark.parametrize('peer', [None, tiny_ssd(1 / 16), dict(model=tiny_ssd(1 / 16))],
                         ids=['like the student', 'a model', 'a config'])
def test_the_peer_of_a_term_is_taken_as_a_detector_of_its_own(peer, tmp_path):
    _, model, path = mutual(tmp_path, peer)
    found, student = load_student(path, peer='dml'), load_student(path)
    wanted = model.distill['dml'].peer.state_dict()
    for one, state in ((found, wanted), (student, model.student.state_dict())):
        mine = one.detector.state_dict()
        assert list(mine) == list(state) and all(torch.equal(v, state[k]) for k, v in mine.items())
    assert type(found.detector).__name__ == 'SingleStageDetector' and found.config.custom_hooks == []
    assert found.taught == student.taught | dict(peer='dml') and found.taught['teacher'] == 'none'


def test_a_peer_with_a_config_file_is_built_from_it_but_only_where_the_run_is_given(tmp_path):
    Config(dict(model=tiny_ssd(1 / 16))).dump(tmp_path / 'peer.py')
    cfg, model, path = mutual(tmp_path, str(tmp_path / 'peer.py'))
    with pytest.raises(UserError, match=r'peer\.py, which the checkpoint does not hold; give the config'):
        load_student(path, peer='dml')
    Config(cfg).dump(tmp_path / 'run.py')
    found = load_student(path, tmp_path / 'run.py', peer='dml').detector.state_dict()
    assert all(torch.equal(v, found[k]) for k, v in model.distill['dml'].peer.state_dict().items())


def test_a_peer_that_is_not_there_is_named(plain, tmp_path):
    cfg, _, path = mutual(tmp_path)
    with pytest.raises(UserError, match=r"holds no peer of a term 'x'; it holds that of 'dml'"):
        load_student(path, peer='x')
    cfg['model']['terms'] = dict(other=cfg['model']['terms']['dml'])
    Config(cfg).dump(tmp_path / 'run.py')
    with pytest.raises(UserError, match="the config has no term 'dml', whose peer is asked for"):
        load_student(path, tmp_path / 'run.py', peer='dml')
    path = save(tmp_path / 'b.pth', plain.detector.state_dict(), plain.config.to_dict())
    with pytest.raises(UserError, match='it holds none at all. DML trains one'):
        load_student(path, peer='dml')


def test_a_checkpoint_of_another_config_is_refused_with_the_keys(plain, tmp_path):
    path = save(tmp_path / 'a.pth', plain.detector.state_dict(), dict(model=tiny_ssd(num_classes=5)))
    with pytest.raises(UserError, match=r'misshaped: bbox_head\.cls_convs\.0'):
        load_student(path)
    path = save(tmp_path / 'b.pth', plain.detector.state_dict(), dict(model=tiny_ssd(depth=11)))
    with pytest.raises(UserError, match='unexpected: backbone'):
        load_student(path)


def test_without_a_config_inside_one_is_asked_for(plain, tmp_path):
    path = save(tmp_path / 'a.pth', plain.detector.state_dict())
    with pytest.raises(UserError, match='--config'):
        load_student(path)
    plain.config.dump(tmp_path / 'c.py')
    assert load_student(path, tmp_path / 'c.py').input_size == (96, 96)


def test_a_config_inside_is_never_run(plain, tmp_path):
    marker = tmp_path / 'ran'
    path = save(tmp_path / 'a.pth', plain.detector.state_dict(),
                f'import pathlib\npathlib.Path({str(marker)!r}).touch()\nmodel = dict()\n')
    with pytest.raises(UserError, match='not run'):
        load_student(path)
    assert not marker.exists()


def test_class_names_come_from_the_run_then_the_config_then_are_numbers(plain, tmp_path):
    state, cfg = plain.detector.state_dict(), plain.config.to_dict()
    assert load_student(save(tmp_path / 'a.pth', state, cfg, classes=None)).classes == ('0', '1', '2')
    cfg['test_dataloader']['dataset']['metainfo'] = dict(classes=('x', 'y', 'z'))
    assert load_student(save(tmp_path / 'b.pth', state, cfg, classes=None)).classes == ('x', 'y', 'z')


def test_the_size_is_fixed_only_where_images_are_stretched():
    def of(**resize):
        return fixed_size(Config(dict(test_pipeline=[dict(type='Resize', **resize)])))
    assert of(scale=(300, 200), keep_ratio=False) == (200, 300)
    assert of(scale=(300, 200), keep_ratio=True) is None
    assert fixed_size(Config(dict())) is None
