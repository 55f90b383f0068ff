"""Going on with a run: from which checkpoint, of whose files, and what of a changed config counts."""
import os
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from hgd_det.checkpoint import load, newest_intact
from hgd_det.training.hooks import AtomicCheckpointHook
from hgd_det.training.resume import settings
from hgd_det.training.runner import build_runner, load_config

pytestmark = pytest.mark.thorough

SHORT = ['train_cfg.val_interval=100', 'default_hooks.checkpoint.interval=1']


@pytest.fixture(scope='module')
def cycle(config, tmp_path_factory) -> Path:
    """The tiny config with a cycle as long as the run, whatever its length."""
    path = tmp_path_factory.mktemp('cycle') / 'cycle.py'
    path.write_text(f"_base_ = {str(config)!r}\nparam_scheduler = [dict(type='OneCycleLR', eta_max=1e-2, "
                    'by_epoch=False)]\ndefault_hooks = dict(logger=dict(type="LoggerHook", interval=1))\n')
    return path


@pytest.fixture(scope='module')
def done(cycle, hgd, tmp_path_factory) -> Path:
    """The folder of a finished run of three iterations, each saved."""
    folder = tmp_path_factory.mktemp('done') / 'run'
    assert hgd('train', '--no-validate', '--work-dir', folder, config=cycle,
               options=[*SHORT, 'train_cfg.max_iters=3']) == 0
    return folder


@pytest.fixture
def run(done, tmp_path) -> Path:
    return Path(shutil.copytree(done, tmp_path / 'run'))


def edit(path, change):
    content = load(path)
    change(content)
    torch.save(content, path)


def same(one, other):
    return all(torch.equal(value, other[key]) for key, value in one.items())


def rates(folder):
    import json
    rows = [json.loads(line) for log in sorted(folder.glob('*/vis_data/scalars.json')) for line in log.open()]
    return {row['iter']: row['lr'] for row in rows if 'lr' in row}


# ------------------------------------------------------------------------------- which is the newest
def test_the_newest_is_that_of_the_most_iterations_whenever_it_was_touched(run):
    for age, number in enumerate((3, 2, 1)):
        os.utime(run / f'iter_{number}.pth', ns=(10 ** 18 + age, 10 ** 18 + age))
    assert newest_intact(run)[0] == run / 'iter_3.pth'


def test_a_copy_under_a_higher_number_is_not_the_newest(run):
    shutil.copy(run / 'iter_1.pth', run / 'iter_99.pth')
    assert newest_intact(run)[0] == run / 'iter_3.pth'


def test_a_pointer_into_another_run_is_not_followed(run, done):
    (run / 'iter_3.pth').unlink()
    assert (run / 'last_checkpoint').read_text() == str(done / 'iter_3.pth')
    assert newest_intact(run)[0] == run / 'iter_2.pth'


def test_weights_beside_a_run_are_not_looked_at(run):
    (run / 'teacher_voc.pth').write_bytes(b'no checkpoint')
    assert newest_intact(run) == (run / 'iter_3.pth', [])


def test_whatever_byte_of_its_table_of_contents_is_damaged_the_one_before_takes_over(tmp_path):
    whole = dict(optimizer={}, message_hub={}, state_dict={'w': torch.zeros(1)})
    for number in (1, 2):
        torch.save(whole | dict(meta=dict(iter=number, epoch=0)), tmp_path / f'iter_{number}.pth')
    path = tmp_path / 'iter_2.pth'
    sound = path.read_bytes()
    names = [at for at in range(len(sound)) if sound.startswith(b'PK\x01\x02', at)]
    taken = set()
    for at in range(names[0], len(sound), 3):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 0xff]) + sound[at + 1:])
        found, skipped = newest_intact(tmp_path)    # never anything but an answer
        assert found == path or (found == tmp_path / 'iter_1.pth' and 'iter_2.pth' in skipped[0])
        taken.add(found.name)
    assert taken == {'iter_1.pth', 'iter_2.pth'}


# ---------------------------------------------------------------------------- whose files are obeyed
def resumed(runner, folder, **checkpoint):
    """A run of the stub that goes on from iter_2 in its folder, and its saver."""
    made = runner(folder, iters=4, checkpoint=checkpoint, resume=True, load_from=str(folder / 'iter_2.pth'))
    return made, next(hook for hook in made.hooks if isinstance(hook, AtomicCheckpointHook))


HOSTILE = {
    'the best': lambda hub, victim: hub.update(best_ckpt=str(victim), best_score=0.0),
    'the best of several': lambda hub, victim: hub.update(
        {'best_ckpt_acc': str(victim), 'best_score_acc': 0.0}),
    'the last': lambda hub, victim: hub.update(last_ckpt=str(victim)),
    'the kept': lambda hub, victim: hub.update(
        keep_ckpt_ids=[f'/../../{victim.parent.name}/{victim.stem}', 1, 2]),
    'the kept, by type': lambda hub, victim: hub.update(keep_ckpt_ids={'x': 1}),
    'the score': lambda hub, victim: hub.update(best_score='high', best_ckpt=str(victim)),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_no_file_that_a_checkpoint_names_is_removed_and_the_run_goes_on(name, tmp_path, runner):
    folder, victim = tmp_path / 'run', tmp_path / 'other/iter_7.pth'
    victim.parent.mkdir()
    victim.write_bytes(b'of somebody else')
    several = name.endswith('several')
    saver = dict(max_keep_ckpts=1, save_best=['acc', 'loss'] if several else 'acc', rule=['greater', 'less']
                 if several else 'greater')
    runner(folder, iters=2, checkpoint=saver | dict(max_keep_ckpts=3)).train()
    (folder / 'iter_').mkdir()    # `iter_/../..` exists then
    edit(folder / 'iter_2.pth', lambda c: HOSTILE[name](c['message_hub']['runtime_info'], victim))
    made, hook = resumed(runner, folder, **saver)
    made.train()
    hook.after_val_epoch(made, {'acc': 0.9, 'loss': 0.1})
    assert victim.read_bytes() == b'of somebody else'
    assert 'iter_4.pth' in {path.name for path in folder.glob('*.pth')}


@pytest.mark.parametrize('moved', [False, True])
def test_a_run_that_was_copied_or_moved_is_its_own(moved, tmp_path, runner):
    first, second = tmp_path / 'first', tmp_path / 'second'
    saver = dict(max_keep_ckpts=2, save_best='acc', rule='greater')
    made = runner(first, iters=2, checkpoint=saver)
    made.train()
    hook = next(hook for hook in made.hooks if isinstance(hook, AtomicCheckpointHook))
    hook.after_val_epoch(made, {'acc': 0.5})
    before = {path.name: path.read_bytes() for path in first.glob('*.pth')}
    assert 'best_acc_iter_2.pth' in before
    shutil.move(first, second) if moved else shutil.copytree(first, second)
    made, hook = resumed(runner, second, **saver)
    made.train()
    hook.after_val_epoch(made, {'acc': 0.4})
    assert (second / 'best_acc_iter_2.pth').exists()    # its score came along
    hook.after_val_epoch(made, {'acc': 0.9})
    assert {path.name for path in second.glob('*.pth')} == {'iter_3.pth', 'iter_4.pth', 'best_acc_iter_4.pth'}
    if not moved:
        assert {path.name: path.read_bytes() for path in first.glob('*.pth')} == before


def test_what_kills_left_over_the_number_to_keep_is_cleared_away_on_resuming(tmp_path, runner):
    runner(tmp_path, iters=2, checkpoint=dict(max_keep_ckpts=3)).train()
    for number in (0, 7):    # of before, and of a run that went on further
        shutil.copy(tmp_path / 'iter_1.pth', tmp_path / f'iter_{number}.pth')
    for number in (1, 2):
        shutil.copy(tmp_path / 'iter_1.pth', tmp_path / f'best_acc_iter_{number}.pth')
        edit(tmp_path / f'best_acc_iter_{number}.pth',
             lambda c, n=number: c['message_hub']['runtime_info'].update(best_score=n / 10))
    made, hook = resumed(runner, tmp_path, max_keep_ckpts=2, save_best='acc', rule='greater')
    made.train()
    assert {path.name for path in tmp_path.glob('*.pth')} == {
        'iter_3.pth', 'iter_4.pth', 'iter_7.pth', 'best_acc_iter_2.pth'}
    assert made.message_hub.get_info('best_score') == 0.2


def test_checkpoints_name_their_companions_without_a_folder(tmp_path, runner):
    made = runner(tmp_path, iters=2, checkpoint=dict(save_best='acc', rule='greater'))
    made.train()
    next(h for h in made.hooks if isinstance(h, AtomicCheckpointHook)).after_val_epoch(made, {'acc': 0.5})
    info = load(tmp_path / 'iter_2.pth')['message_hub']['runtime_info']
    assert (info['last_ckpt'], info['best_ckpt']) == ('iter_2.pth', 'best_acc_iter_2.pth')


def test_a_config_under_the_old_name_in_a_checkpoint_is_not_run(run, cycle, hgd, tmp_path):
    exploded = tmp_path / 'exploded'
    program = f'import pathlib\npathlib.Path({str(exploded)!r}).touch()\n'
    edit(run / 'iter_3.pth', lambda content: content['meta'].update(config=program))
    assert hgd('train', '--no-validate', '--work-dir', run, '--resume', config=cycle,
               options=[*SHORT, 'train_cfg.max_iters=4']) == 0
    assert not exploded.exists() and (run / 'iter_4.pth').exists()


# ------------------------------------------------------------------------------- what the config says
def test_a_longer_run_goes_on_at_the_rates_of_one_that_was_planned_so(run, cycle, hgd, tmp_path, capsys):
    long = [*SHORT, 'train_cfg.max_iters=6']
    assert hgd('train', '--no-validate', '--work-dir', tmp_path / 'whole', config=cycle, options=long) == 0
    capsys.readouterr()
    assert hgd('train', '--no-validate', '--work-dir', run, '--resume', config=cycle, options=long) == 0
    said = capsys.readouterr()
    assert 'train_cfg.max_iters was 3, now 6' in said.out + said.err
    planned, found = rates(tmp_path / 'whole'), rates(run)
    assert [found[i] for i in (4, 5, 6)] == [planned[i] for i in (4, 5, 6)]    # to the bit


def test_a_changed_learning_rate_counts_and_is_named(run, cycle, hgd, tmp_path, capsys):
    new = [*SHORT, 'train_cfg.max_iters=5', 'param_scheduler.0.eta_max=0.002']
    assert hgd('train', '--no-validate', '--work-dir', run, '--resume', config=cycle, options=new) == 0
    said = capsys.readouterr()
    assert 'param_scheduler.0.eta_max was 0.01, now 0.002' in said.out + said.err
    assert hgd('train', '--no-validate', '--work-dir', tmp_path / 'whole', config=cycle, options=new) == 0
    assert rates(run)[4] == rates(tmp_path / 'whole')[4] < 0.002


def test_an_unchanged_config_says_nothing_and_ends_with_the_same_bits(done, run, cycle, hgd, capsys):
    (run / 'iter_3.pth').unlink()
    capsys.readouterr()
    assert hgd('train', '--no-validate', '--work-dir', run, '--resume', config=cycle,
               options=[*SHORT, 'train_cfg.max_iters=3']) == 0
    said = capsys.readouterr()
    assert 'other settings' not in said.out + said.err
    assert same(load(run / 'iter_3.pth')['state_dict'], load(done / 'iter_3.pth')['state_dict'])


@pytest.mark.parametrize('kind, message', [
    ("'CosineAnnealingLR', T_max=2, end=3", 'is over: from iteration 3 to 6'),
    ("'OneCycleLR', eta_max=1e-2, total_steps=3", 'is shorter than the run'),
])
def test_a_schedule_that_is_over_is_refused_with_how_to_say_it(
        run, cycle, hgd, tmp_path, capsys, kind, message):
    path = tmp_path / 'over.py'
    path.write_text(f'_base_ = {str(cycle)!r}\nparam_scheduler = [dict(type={kind}, by_epoch=False)]\n')
    assert hgd('train', '--no-validate', '--work-dir', run, '--resume', config=path,
               options=[*SHORT, 'train_cfg.max_iters=6']) == 2
    error = capsys.readouterr().err
    assert message in error and 'param_scheduler.0.' in error and 'Traceback' not in error


def test_resuming_a_finished_run_says_so_and_touches_nothing(run, cycle, hgd, capsys):
    before = {path.name: path.read_bytes() for path in run.glob('*.pth')}
    logs = len(list(run.glob('*/vis_data')))
    assert hgd('train', '--no-validate', '--work-dir', run, '--resume', config=cycle,
               options=[*SHORT, 'train_cfg.max_iters=3']) == 0
    said = capsys.readouterr().out
    assert 'the run is finished, iteration 3 of 3' in said and 'train_cfg.max_iters=6' in said
    assert {path.name: path.read_bytes() for path in run.glob('*.pth')} == before
    assert len(list(run.glob('*/vis_data'))) == logs


def test_the_seed_is_the_runs_own(done, run, cycle, hgd, capsys):
    (run / 'iter_3.pth').unlink()
    assert hgd('train', '--no-validate', '--work-dir', run, '--resume', '--seed', 7, config=cycle,
               options=[*SHORT, 'train_cfg.max_iters=3']) == 0
    assert 'randomness.seed=7 is not taken up' in capsys.readouterr().out
    assert same(load(run / 'iter_3.pth')['state_dict'], load(done / 'iter_3.pth')['state_dict'])


def wrong_group(content):
    content['optimizer']['param_groups'][0]['params'].pop()


def distilled(content):
    wrong_group(content)
    content['distill'] = {'distill.hgd.w': torch.zeros(1)}


def no_groups(content):
    content['optimizer']['param_groups'] = 'none'


@pytest.mark.parametrize('change, options, message', [
    (wrong_group, [], 'Resume with the config it was trained with'),
    (distilled, [], 'the config is the student alone'),
    (no_groups, [], 'no groups of parameters'),
    (lambda content: None, ["optim_wrapper.optimizer.type=SGD"], 'is of another optimizer than SGD'),
])
def test_a_checkpoint_of_another_training_is_refused_in_one_message(
        run, cycle, hgd, capsys, change, options, message):
    edit(run / 'iter_3.pth', change)
    assert hgd('train', '--no-validate', '--work-dir', run, '--resume', config=cycle,
               options=[*SHORT, 'train_cfg.max_iters=4', *options]) == 2
    error = capsys.readouterr().err
    assert message in error and 'Traceback' not in error


# --------------------------------------------------------------------------------- one folder, one run
@pytest.mark.parametrize('chosen, message', [('run/iter_1.pth', 'iter_3.pth, which is later'),
                                             ('other/iter_1.pth', 'iter_3.pth of another training')])
def test_going_on_from_elsewhere_does_not_mix_two_runs(
        run, done, cycle, hgd, tmp_path, capsys, chosen, message):
    shutil.copytree(done, tmp_path / 'other')
    before = {path.name: path.read_bytes() for path in run.glob('*.pth')}
    assert hgd('train', '--work-dir', run, '--resume', tmp_path / chosen, config=cycle, options=SHORT) == 2
    assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.glob('*.pth')} == before


def test_settings_are_those_the_run_was_built_with(cycle, done):
    cfg = load_config(cycle, ['train_cfg.max_iters=3'])
    cfg.work_dir = str(done.with_name('built'))
    told = load(done / 'iter_3.pth')['meta']['settings']
    assert told['train_cfg.max_iters'] == '3' and told['param_scheduler.0.eta_max'] == '0.01'
    assert settings(Config(dict(model=dict(a=(1, 2))))) == {
        'model.a.0': '1', 'model.a.1': '2', **{name: 'None' for name in (
            'train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'custom_hooks', 'randomness',
            'load_from', 'auto_scale_lr', 'sync_bn')}}
    assert build_runner(cfg).cfg.param_scheduler[0].eta_max == 0.01
