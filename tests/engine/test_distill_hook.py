"""What checkpoints say of the teachers of a run."""
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import ConfigDict

from hgd_det.distill.distiller import Distiller
from hgd_det.engine.distill_hook import DistillHook
from hgd_det.errors import UserError
from hgd_det.testing import tiny_ssd

HGD = dict(type='HGD', weight=1.0)


def run(tmp_path, *names):
    """A runner's model under teachers of these names, each a file of its own."""
    teachers = {}
    for name in names:
        path = tmp_path / f'{name}.pth'
        if not path.exists():
            model = Distiller(ConfigDict(tiny_ssd(1 / 8)))
            torch.save(dict(state_dict=model.state_dict()), path)
        teachers[name] = dict(model=tiny_ssd(1 / 8), checkpoint=str(path))
    terms = {f'x_{name}': dict(HGD, teacher=name) for name in names}
    given = dict(teachers=teachers) if names != ('teacher',) else dict(teacher=teachers['teacher'])
    model = Distiller(ConfigDict(tiny_ssd()), terms=terms, input_size=96, **given)
    model.init_weights()
    return SimpleNamespace(model=model, _resume=True)


def saved(runner):
    checkpoint = dict(meta={}, state_dict={})
    DistillHook().before_save_checkpoint(runner, checkpoint)
    return checkpoint


def test_one_teacher_is_noted_as_it_always_was_and_several_by_name(tmp_path):
    one, two = run(tmp_path, 'teacher'), run(tmp_path, 'a', 'b')
    assert saved(one)['meta']['teacher']['sha256'] == one.model.teacher.digest
    found = saved(two)['meta']['teachers']
    assert {name: each['sha256'] for name, each in found.items()} == {
        name: each.digest for name, each in two.model.teachers.items()}
    assert set(saved(run(tmp_path, 'a'))['meta']['teachers']) == {'a'}


@pytest.mark.parametrize('names', [('teacher',), ('a',), ('a', 'b')])
def test_resuming_under_another_teacher_is_refused(tmp_path, names):
    runner = run(tmp_path, *names)
    checkpoint = saved(runner)
    DistillHook().after_load_checkpoint(runner, checkpoint)
    runner.model.teachers[names[-1]].digest = 'f' * 64
    with pytest.raises(UserError, match=f'began under the teacher .*{names[-1]}.pth.*now it is .*fff'):
        DistillHook().after_load_checkpoint(runner, checkpoint)
    DistillHook(same_teacher=False).after_load_checkpoint(runner, checkpoint)
