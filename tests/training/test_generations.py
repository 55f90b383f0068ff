"""Generations through the tools: one command, a teacher handed on, stops, resumes, refusals."""
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

from hgd_det.checkpoint import load, sha256
from hgd_det.cli.main import main
from hgd_det.testing import tiny_ssd
from hgd_det.training.generations import RECORD, generation
from hgd_det.training.runner import load_config
from hgd_det.training.signals import StopHook

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BORN = '''
_base_ = {student!r}
generations = 3
model = dict(_delete_=True, type='Distiller', student={{{{_base_.model}}}},
             teacher=dict(model=dict(model={{{{_base_.model}}}})), input_size=96,
             terms=dict(kd=dict(type='LogitKD', temperature=1.0, weight=1.0)))
custom_hooks = [dict(type='DistillHook')]
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer')
'''


@pytest.fixture(scope='module')
def born(config, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp('born') / 'born.py'
    path.write_text(BORN.format(student=str(config)))
    return path


@pytest.fixture(scope='module')
def chain(born, hgd) -> Path:
    """The work directory of three finished generations of four iterations."""
    folder = born.parent / 'chain'
    assert hgd('train', '--work-dir', folder, '--no-validate', config=born) == 0
    return folder


@pytest.fixture
def copied(chain, tmp_path) -> Path:
    return Path(shutil.copytree(chain, tmp_path / 'chain'))


def weights(path):
    return load(path)['state_dict']


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())


def unfinish(folder):
    """As a generation is after its second iteration."""
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({k: record[k] for k in ('generation', 'settings')}))
    (folder / 'iter_4.pth').unlink()
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_2.pth'))


@pytest.mark.slow
def test_each_generation_is_a_run_of_its_own_and_all_have_one_shape(chain, born):
    found = [weights(chain / f'gen{k}/iter_4.pth') for k in (1, 2, 3)]
    shapes = [{key: value.shape for key, value in each.items()} for each in found]
    assert shapes[0] == shapes[1] == shapes[2]
    assert not same(found[0], found[1]) and not same(found[1], found[2])
    for k in (1, 2, 3):
        folder = chain / f'gen{k}'
        logs = [json.loads(line) for line in next(folder.glob('*/vis_data/scalars.json')).open()]
        assert [line['iter'] for line in logs] == [1, 2, 3, 4]
        assert all(('loss_kd' in line) == (k > 1) for line in logs)
        assert Config.fromfile(folder / born.name).randomness.seed == k - 1
    assert sorted(path.name for path in chain.iterdir()) == ['gen1', 'gen2', 'gen3']


def test_the_first_generation_is_the_plain_student_bit_for_bit(chain, trained):
    assert same(weights(chain / 'gen1/iter_4.pth'), weights(trained / 'iter_4.pth'))


@pytest.mark.parametrize('k', [2, 3])
def test_the_teacher_of_a_generation_is_the_one_before(chain, born, k):
    before = chain / f'gen{k - 1}' / 'iter_4.pth'
    model = MODELS.build(Config.fromfile(chain / f'gen{k}' / born.name).model)
    model.teacher.load()
    assert same(model.teacher.detector.state_dict(), weights(before))
    assert load(chain / f'gen{k}/iter_4.pth')['meta']['teacher']['sha256'] == sha256(before)
    assert json.loads((before.parent / RECORD).read_text())['sha256'] == sha256(before)


def test_the_tools_take_a_generation_as_any_run(chain, born, hgd, tmp_path):
    last = chain / 'gen3' / 'iter_4.pth'
    assert hgd('test', last, '--work-dir', tmp_path, config=born) == 0
    assert main(['export', str(born), str(last), str(tmp_path / 'out')]) == 0
    exported = torch.load(tmp_path / 'out/model.pth', weights_only=True)['state_dict']
    assert same(exported, weights(last))
    assert main(['inspect', str(born)]) == 0


@pytest.mark.parametrize('resume', [[], ['--resume']])
def test_what_is_finished_is_skipped(chain, born, hgd, capsys, resume):
    before = {path: path.stat().st_mtime_ns for path in chain.rglob('*')}
    assert hgd('train', '--work-dir', chain, '--no-validate', *resume, config=born) == 0
    assert capsys.readouterr().out.count('is finished') == 3
    assert {path: path.stat().st_mtime_ns for path in chain.rglob('*')} == before


@pytest.mark.slow
def test_a_signal_in_the_second_generation_ends_the_chain_and_resume_completes_it_bit_for_bit(
        chain, born, hgd, tmp_path, monkeypatch, capsys):
    after = StopHook.after_train_iter

    def signalled(self, runner, *args, **kwargs):
        if Path(runner.work_dir).name == 'gen2' and runner.iter == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        after(self, runner, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(StopHook, 'after_train_iter', signalled)
        assert hgd('train', '--work-dir', tmp_path, '--no-validate', config=born) == 128 + signal.SIGTERM
    assert (tmp_path / 'gen2/iter_1.pth').exists() and not (tmp_path / 'gen3').exists()
    assert 'checkpoint' not in json.loads((tmp_path / 'gen2' / RECORD).read_text())
    capsys.readouterr()
    assert hgd('train', '--work-dir', tmp_path, '--no-validate', '--resume', config=born) == 0
    said = capsys.readouterr().out
    assert said.count('is finished') == 1 and f'resuming from {tmp_path / "gen2/iter_1.pth"}' in said
    for k in (1, 2, 3):
        assert same(weights(tmp_path / f'gen{k}/iter_4.pth'), weights(chain / f'gen{k}/iter_4.pth')), k


@pytest.mark.slow
def test_a_folder_may_move_and_workers_and_validation_may_change(copied, chain, born, hgd):
    unfinish(copied / 'gen3')
    assert hgd('train', '--work-dir', copied, '--resume', config=born,
               options=['train_dataloader.num_workers=1', 'train_cfg.val_interval=2']) == 0
    assert same(weights(copied / 'gen3/iter_4.pth'), weights(chain / 'gen3/iter_4.pth'))


def test_without_resume_an_unfinished_generation_is_not_trained_over(copied, born, hgd, capsys):
    unfinish(copied / 'gen3')
    before = (copied / 'gen3/iter_2.pth').read_bytes()
    assert hgd('train', '--work-dir', copied, '--no-validate', config=born) == 2
    assert 'gen3 holds a training, up to iter_2.pth. --resume goes on' in capsys.readouterr().err
    assert (copied / 'gen3/iter_2.pth').read_bytes() == before


@pytest.mark.parametrize('arguments, message', [
    (['--seed', '5'], 'randomness.seed was 0, now 5'),
    (['--resume', '--seed', '5'], 'randomness.seed was 0, now 5'),
    (['--cfg-options', 'optim_wrapper.optimizer.lr=0.5'], 'optim_wrapper.optimizer.lr was 0.001, now 0.5'),
    (['--resume', 'some.pth'], 'give --resume alone'),
    (['--cfg-options', 'generations=0'], 'their number, from 1'),
    (['--cfg-options', 'generations=three'], 'their number, from 1'),
    (['--cfg-options', 'model.type=SingleStageDetector'], "type='Distiller'"),
    (['--cfg-options', 'default_hooks.checkpoint=None'], 'switches off'),
])
def test_a_mistake_is_refused_before_anything_is_trained(chain, born, capsys, arguments, message):
    assert main(['train', str(born), '--work-dir', str(chain), '--no-validate', *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_unfinished_generation_of_other_settings_is_not_resumed(copied, born, hgd, capsys):
    unfinish(copied / 'gen2')
    shutil.rmtree(copied / 'gen3')
    assert hgd('train', '--work-dir', copied, '--resume', config=born,
               options=['model.terms.kd.weight=2.0']) == 2
    assert 'model.terms.kd.weight was 1.0, now 2.0' in capsys.readouterr().err
    (copied / 'gen2' / RECORD).unlink()
    assert hgd('train', '--work-dir', copied, '--resume', config=born) == 2
    assert f'no {RECORD}' in capsys.readouterr().err


def test_a_predecessor_that_changed_or_is_gone_is_noticed(copied, born, hgd, capsys):
    record = copied / 'gen1' / RECORD
    text = record.read_text()
    record.write_text(json.dumps(json.loads(text) | {'sha256': '0' * 64}))
    assert hgd('train', '--work-dir', copied, config=born) == 2
    assert 'model.teacher.sha256 was' in capsys.readouterr().err
    record.write_text(text)
    (copied / 'gen1/iter_4.pth').unlink()
    assert hgd('train', '--work-dir', copied, config=born) == 0  # nobody needs it any more
    unfinish(copied / 'gen2')
    assert hgd('train', '--work-dir', copied, '--resume', config=born) == 2
    assert 'which is gone' in capsys.readouterr().err


def test_a_list_of_changes_lets_another_student_teach(born, config, hgd, tmp_path):
    path = tmp_path / 'assistant.py'
    wider = dict(model=dict(student=dict(tiny_ssd(1 / 8), _delete_=True)))
    path.write_text(born.read_text().replace('generations = 3', f'generations = {[wider, {}]!r}'))
    assert hgd('train', '--work-dir', tmp_path, '--no-validate', config=path,
               options=['train_cfg.max_iters=1']) == 0
    first, second = (weights(tmp_path / f'gen{k}/iter_1.pth')['backbone.features.0.weight'] for k in (1, 2))
    assert first.shape[0] == 2 * second.shape[0]


def test_a_first_teacher_teaches_the_first_generation_all_terms(born, monkeypatch):
    import hgd_det.distill.terms.nst as nst
    cfg = load_config(born, {'model.terms.other': dict(type='NST')})
    assert generation(cfg, 1, {}, None).model.terms == {}
    monkeypatch.setattr(nst.NST, 'needs_teacher', False)
    alone = generation(cfg, 1, {}, None).model
    assert list(alone.terms) == ['other'] and alone.teacher is None
    cfg.model.teacher = dict(model='their.py', checkpoint='their.pth', input_size=320)
    first, second = (generation(cfg, k, {}, teacher).model for k, teacher in
                     ((1, None), (2, dict(model={}, checkpoint='gen1.pth', sha256='0'))))
    assert list(first.terms) == ['kd', 'other'] and first.teacher.checkpoint == 'their.pth'
    assert second.teacher == dict(model={}, checkpoint='gen1.pth', sha256='0')


@pytest.mark.slow
def test_two_processes_walk_the_chain_together(born, tmp_path, free_port):
    done = subprocess.run(
        ['bash', ROOT / 'tools/dist_train.sh', born, '2', '--work-dir', tmp_path, '--no-validate'],
        env=os.environ | {'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1', 'PORT': free_port,
                          'PYTHONPATH': str(ROOT)}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for k in (1, 2, 3):
        record = json.loads((tmp_path / f'gen{k}' / RECORD).read_text())
        assert record['sha256'] == sha256(tmp_path / f'gen{k}/iter_4.pth')
    assert load(tmp_path / 'gen3/iter_4.pth')['meta']['teacher']['sha256'] == \
        sha256(tmp_path / 'gen2/iter_4.pth')


@pytest.mark.parametrize('kept', ['/elsewhere/iter_2.pth', '../other/iter_2.pth', None])
def test_a_record_names_no_checkpoint_outside_of_its_folder(tmp_path, kept):
    from mmengine.config import Config

    from hgd_det.errors import UserError
    from hgd_det.training.generations import _teacher
    (tmp_path / 'generation.json').write_text(json.dumps(dict(checkpoint=kept, sha256='0')))
    with pytest.raises(UserError, match='outside of its folder'):
        _teacher(Config(dict(work_dir=str(tmp_path), model=dict(type='SSD'))))
