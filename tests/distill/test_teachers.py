"""Several teachers by name, teachers of other classes, teachers that see their own picture."""
import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger

from hgd_det.distill.distiller import Distiller
from hgd_det.distill.schedule import Progress
from hgd_det.distill.teacher import Teacher
from hgd_det.errors import UserError
from hgd_det.testing import every_term, make_batch, tiny_ssd, train_step

MINE, THEIRS = ('cat', 'dog', 'car'), ('bus', 'dog', 'tree', 'car', 'cat')
MAP = dict(car=['bus', 'car'], dog='dog', cat='cat')
KD = dict(type='LogitKD', weight=1.0, warmup=0)
HGD = dict(type='HGD', weight=1.0, warmup=0)


def teacher(width=1 / 8, **more):
    known = more.pop('named', THEIRS)
    model = dict(model=tiny_ssd(width, more.pop('num_classes', 3), mean=more.pop('mean', 123.0)))
    if known:
        model['train_dataloader'] = dict(dataset=dict(type='VOCFolder', metainfo=dict(classes=known)))
    return dict(model=model, checkpoint='untrained', **more)


def distiller(terms, teacher=None, teachers=None):
    torch.manual_seed(7)
    model = Distiller(ConfigDict(tiny_ssd()), teacher, ConfigDict(terms), input_size=96, teachers=teachers)
    model.init_weights()
    model.progress = Progress(0, 100)
    return model.train()


def ready(model, **batch):
    return model.data_preprocessor(make_batch(**batch), True)


@pytest.fixture
def logged(monkeypatch):
    lines = []
    monkeypatch.setattr(MMLogger, 'log', lambda self, level, text, *rest: lines.append(str(text)))
    monkeypatch.setattr('hgd_det.distill.teacher.print_log', lambda text, *rest, **more: lines.append(text))
    return lines


# ------------------------------------------------------------------------------------------ several by name
def test_each_term_learns_from_the_teacher_that_it_names():
    model = distiller(dict(x=dict(HGD, teacher='a'), y=dict(HGD, teacher='b')),
                      teachers=dict(a=teacher(1 / 8), b=teacher(1 / 4)))
    _, log = train_step(model, make_batch())
    for name, width in (('x', 1 / 8), ('y', 1 / 4)):
        alone = distiller({name: HGD}, teacher(width))
        alone.distill[name].load_state_dict(model.distill[name].state_dict())
        alone.student.load_state_dict(model.student.state_dict())
        whose = model.teachers[model.teachers.of_term[name]]
        alone.teacher.detector.load_state_dict(whose.detector.state_dict())
        assert train_step(alone, make_batch())[1][f'{name}_raw'] == log[f'{name}_raw']
    assert model.teacher is None and model.teachers.of_term == dict(x='a', y='b')


def test_each_teacher_runs_once_for_all_its_pupils_and_not_without_any():
    model = distiller(dict(x=dict(HGD, teacher='a'), y=dict(type='Hint', weight=1.0, warmup=0, teacher='a'),
                           z=dict(HGD, teacher='b', warmup=50)),
                      teachers=dict(a=teacher(), b=teacher(), idle=teacher()))
    runs = {name: [] for name in model.teachers}
    for name, one in model.teachers.items():
        one.detector.backbone.register_forward_hook(lambda *_, name=name: runs[name].append(1))
    train_step(model, make_batch())
    assert set(runs) == {'a', 'b'} and len(runs['a']) == 1 and not runs['b']


def test_with_one_teacher_a_term_need_not_name_it():
    model = distiller(dict(x=HGD), teachers=dict(a=teacher()))
    assert train_step(model, make_batch())[1]['x_raw'] > 0 and model.teacher is model.teachers['a']


def test_every_teacher_moves_and_copies_with_the_model_and_is_none_of_it():
    model = distiller(dict(x=dict(HGD, teacher='a'), y=dict(HGD, teacher='b')),
                      teachers=dict(a=teacher(), b=teacher()))
    twin = copy.deepcopy(model)
    assert all(twin.teachers[name] is one for name, one in model.teachers.items())
    assert twin.teachers.of_term == model.teachers.of_term
    model.double()
    assert all(next(t.detector.parameters()).dtype == torch.float64 for t in model.teachers.values())
    assert not any('teacher' in key for key in model.state_dict())


BOTH = dict(a=teacher(), b=teacher())


@pytest.mark.parametrize('terms, given, said', [
    (dict(x=HGD), dict(teachers=BOTH), "'x' .HGD. does not say which .* teacher=NAME, one of 'a', 'b'"),
    (dict(x=dict(HGD, teacher='c')), dict(teachers=BOTH), "'x' .HGD. has teacher='c', but .* are 'a', 'b'"),
    (dict(x=dict(HGD, teacher='a')), {}, "model.teacher is missing: the term 'x'"),
    (dict(x=dict(type='DML', teacher='a')), dict(teachers=BOTH), "has teacher='a', but it learns from none"),
    (dict(x=HGD), dict(teacher=teacher(), teachers=BOTH), 'teacher= and teachers='),
    (dict(x=HGD), dict(teachers=[teacher()]), r'model.teachers=\['),
    (dict(x=HGD), dict(teachers=dict(a='b.pth')), "model.teachers.a='b.pth'; write dict"),
    (dict(x=HGD), dict(teachers=dict(a=dict(model='no.kind'))), "model.teachers.a: .*'no.kind' is nothing"),
    (dict(x=HGD), dict(teacher=dict(modle=1)), "model.teacher has no option 'modle'; did you mean 'model'"),
    (dict(x=HGD), dict(teacher=dict(config='a.py')), 'model.teacher.config: it is now model='),
    (dict(x=HGD), dict(teacher=dict(same_classes=False)), 'same_classes: it is gone: .*classes={'),
    (dict(x=HGD), dict(teacher=dict(teacher(), classes={'cat': 3})), 'model.teacher: classes=.*write {'),
    (dict(x=HGD), dict(teachers=dict(a=dict(teacher(), checkpoint=None))), 'model.teachers.a.checkpoint'),
])
def test_what_does_not_say_who_teaches_is_refused(terms, given, said):
    with pytest.raises(UserError, match=f'(?s){said}'):
        distiller(terms, **given)


# ------------------------------------------------------------------------------------------- other classes
def test_scores_of_another_list_of_classes_are_read_as_the_students():
    """Five classes under three: the same as a teacher whose head was made of those by hand."""
    model = distiller(dict(kd=KD), teacher(num_classes=5, classes=MAP))
    model.check(classes=MINE)
    batch = ready(model)
    lesson, _ = model.lesson(batch['inputs'], batch['data_samples'])
    theirs = model.teacher
    theirs.mapping, mapping = None, theirs.mapping
    raw = theirs.observe(batch['inputs'], batch['data_samples'], head=True).head
    theirs.mapping = mapping
    p, seen = raw.cls.softmax(-1), lesson.limited('kd', model.distill['kd']).teacher.head
    wanted = torch.stack([p[..., 4], p[..., 1], p[..., 0] + p[..., 3], p[..., 2] + p[..., 5]], -1)
    assert torch.allclose(seen.cls.softmax(-1), wanted, atol=1e-6) and torch.equal(seen.reg, raw.reg)
    assert train_step(model, make_batch())[1]['kd_raw'] > 0


@pytest.mark.parametrize('name', every_term())
def test_every_term_takes_a_map(name):
    try:
        model = distiller(dict(x=every_term()[name]), teacher(num_classes=5, classes=MAP))
    except UserError as error:
        assert 'class' not in str(error) or name == 'LD', error    # of other needs than these detectors have
        return
    model.check(classes=MINE)
    total, _ = train_step(model, make_batch())
    assert torch.isfinite(total)


def test_a_map_that_leaves_classes_out_is_refused_where_scores_are_read():
    with pytest.raises(UserError, match="classes names 2 classes of the student, which has 3; 'kd' reads"):
        distiller(dict(kd=KD), teacher(num_classes=5, classes=dict(cat='cat', dog='dog')))
    model = distiller(dict(kd=KD), teacher(num_classes=5, classes=dict(cat='cat', dog='dog', cow='tree')))
    with pytest.raises(UserError, match="'cow', but the student has no such class"):
        model.check(classes=MINE)


def test_other_classes_are_no_matter_for_features_and_said_once(logged):
    model = distiller(dict(x=HGD), teacher(num_classes=5))
    model.check(classes=MINE)
    assert sum('features need no common classes' in line for line in logged) == 1
    assert train_step(model, make_batch())[1]['x_raw'] > 0


def test_other_classes_are_refused_where_scores_are_read_with_what_to_write():
    with pytest.raises(UserError, match="classes, the teacher 5 .*'kd' would read.*model.teacher.classes={"):
        distiller(dict(kd=KD), teacher(num_classes=5))
    model = distiller(dict(x=HGD, kd=KD), teacher(named=('cat', 'car', 'dog')))
    with pytest.raises(UserError, match="1: teacher 'car', student 'dog'.*whose scores 'kd' would read"):
        model.check(classes=MINE)
    distiller(dict(x=HGD, kd=KD), teacher(named=MINE)).check(classes=MINE)


def test_only_the_terms_of_that_teacher_are_asked():
    model = distiller(dict(x=dict(HGD, teacher='a'), kd=dict(KD, teacher='b')),
                      teachers=dict(a=teacher(num_classes=5), b=teacher(named=MINE)))
    model.check(classes=MINE)


def test_names_that_nobody_gives_are_asked_for():
    model = distiller(dict(kd=KD), teacher(num_classes=5, classes=MAP))
    with pytest.raises(UserError, match="the student's classes have no names"):
        model.check()
    with pytest.raises(UserError, match='nobody has named the student.s classes'):
        train_step(model, make_batch())
    model = distiller(dict(kd=KD), teacher(num_classes=5, classes=MAP, named=None))
    with pytest.raises(UserError, match="the teacher's classes have no names"):
        model.check(classes=MINE)
    model = distiller(dict(kd=KD), teacher(num_classes=5, classes=MAP, named=THEIRS[:4]))
    with pytest.raises(UserError, match='names 4 classes, its head knows 5'):
        model.check(classes=MINE)


# ---------------------------------------------------------------------------------------- its own picture
def with_pictures(model, size=192, seed=3, batch=2):
    data = make_batch(batch)
    generator = torch.Generator().manual_seed(seed)
    for sample in data['data_samples']:
        sample.set_field((torch.rand(3, size, size, generator=generator) * 255).byte(), model.teacher.picture)
    return data


def test_its_own_picture_is_normalised_as_its_own():
    model = distiller(dict(x=HGD), teacher(input_size=192, mean=100.0))
    data = with_pictures(model)
    pixels = dict(inputs=[sample.get(model.teacher.picture) for sample in data['data_samples']])
    batch = model.data_preprocessor(data, True)
    seen = model.teacher.inputs(batch['inputs'], batch['data_samples'])
    assert torch.equal(seen, model.teacher.detector.data_preprocessor(pixels, False)['inputs'])


def test_what_it_puts_out_follows_from_its_own_picture_and_the_students_from_the_students():
    model = distiller(dict(x=HGD), teacher(input_size=192))
    logs = [train_step(model, with_pictures(model, seed=seed))[1] for seed in (3, 4)]
    assert logs[0]['x_raw'] != logs[1]['x_raw'] and logs[0]['loss_cls'] == logs[1]['loss_cls']
    assert logs[0]['loss_bbox'] == logs[1]['loss_bbox']


def test_without_a_picture_it_sees_the_students_resized_and_says_so_once(logged):
    model = distiller(dict(x=HGD), teacher(input_size=192))
    for _ in range(2):
        assert train_step(model, make_batch())[1]['x_raw'] > 0
    assert sum('carry no picture of (192, 192)' in line for line in logged) == 1


def test_a_padded_batch_is_refused_beside_its_own_picture():
    model = distiller(dict(x=HGD), teacher(input_size=192))
    data = with_pictures(model)
    for sample in data['data_samples']:
        sample.set_metainfo(dict(img_shape=(90, 96)))
    with pytest.raises(UserError, match=r'pictures of \(90, 96\) are padded to \(96, 96\)'):
        train_step(model, data)


def test_a_term_that_differentiates_by_the_common_picture_needs_one():
    terms = dict(x=dict(type='GradientAttention', weight=1.0))
    with pytest.raises(UserError, match='differentiates.*model.teacher has input_size=.192, 192.'):
        distiller(terms, teacher(input_size=192))
    assert distiller(terms, teacher(input_size=96)).teacher


def test_a_teacher_is_no_option_of_the_others():
    assert Teacher(tiny_ssd()).picture is None
    assert Teacher(tiny_ssd(), input_size=(128, 64)).picture == 'picture_128x64'


# ------------------------------------------------------------------------------------ what stands for one
def test_a_runs_folder_is_a_whole_teacher(tmp_path):
    """Config, weights and class names come out of its newest checkpoint, and its digest is noted."""
    config = Config(teacher(num_classes=5)['model'])
    detector = MODELS.build(config.model)
    torch.save(dict(state_dict=detector.state_dict(), optimizer={}, message_hub={}, meta=dict(
        cfg=config.pretty_text, dataset_meta=dict(classes=THEIRS))), tmp_path / 'epoch_1.pth')
    model = distiller(dict(kd=KD), dict(model=str(tmp_path), classes=MAP))
    model.check(classes=MINE)
    theirs = model.teacher
    assert theirs.checkpoint == str(tmp_path / 'epoch_1.pth') and len(theirs.digest) == 64
    assert theirs.classes == THEIRS
    assert all(torch.equal(v, theirs.detector.state_dict()[k]) for k, v in detector.state_dict().items())


def test_both_sizes_are_said_where_they_differ():
    with pytest.raises(UserError, match='model.teacher.input_size is .192, 192., but model.input_size'):
        Distiller(ConfigDict(tiny_ssd()), teacher(input_size=192), dict(x=HGD))


@pytest.mark.parametrize('name', every_term())
def test_every_term_learns_from_a_teacher_of_another_size_or_says_what_it_needs(name):
    try:
        model = distiller({'x': every_term()[name]}, teacher(input_size=192, named=MINE))
    except UserError as error:
        assert 'anchors' in str(error) or 'input_size' in str(error), error
        return
    model.check(classes=MINE)
    total, _ = train_step(model, with_pictures(model))
    assert torch.isfinite(total)
