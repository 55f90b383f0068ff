"""A run's folder: one writer, no training over another, and nothing but a training writes there."""
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hgd_det.cli.main import main
from hgd_det.cli.test import evaluate
from hgd_det.engine import folder as folders
from hgd_det.engine.folder import one_writer
from hgd_det.engine.runner import load_config
from hgd_det.errors import UserError

HOLD = '''
import sys, time
from hgd_det.engine.folder import one_writer
with one_writer(sys.argv[1]):
    print('held', flush=True)
    time.sleep(600)
'''


@pytest.fixture
def finished(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / 'run'))


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a folder."""
    process = subprocess.Popen([sys.executable, '-c', HOLD, tmp_path / 'run'], text=True,
                               stdout=subprocess.PIPE)
    assert process.stdout.readline() == 'held\n'
    yield process
    process.kill()
    process.wait()


def content(folder):
    files = (path for path in folder.rglob('*') if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_two_runs_in_one_folder_are_refused_and_a_kill_frees_it(holder, hgd, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(folders, 'PATIENCE', 0.2)
    for resume in ([], ['--resume']):
        assert hgd('train', '--work-dir', tmp_path / 'run', *resume) == 2
        error = capsys.readouterr().err
        assert f'process {holder.pid} on ' in error and 'another --work-dir' in error
    assert not list((tmp_path / 'run').glob('*/vis_data'))
    monkeypatch.setattr(folders, 'PATIENCE', 20)
    holder.send_signal(signal.SIGKILL)
    with one_writer(tmp_path / 'run'):
        pass


def test_a_process_does_not_train_twice_in_one_folder_at_once(tmp_path):
    with one_writer(tmp_path), pytest.raises(UserError, match='trains in .* already'), one_writer(tmp_path):
        pass


def test_the_lock_is_not_handed_on_to_data_workers(tmp_path):
    with one_writer(tmp_path):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    try:
        done = subprocess.run([sys.executable, '-c', HOLD.replace('time.sleep(600)', 'pass'), tmp_path],
                              capture_output=True, text=True, timeout=60)
        assert done.stdout == 'held\n', done.stderr
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_only_the_process_of_a_job_that_writes_takes_the_lock(monkeypatch):
    assert folders.writes({}) and folders.writes(dict(launcher='none'))
    monkeypatch.setenv('RANK', '1')
    assert folders.writes({}) and not folders.writes(dict(launcher='pytorch'))
    monkeypatch.setenv('RANK', '0')
    assert folders.writes(dict(launcher='pytorch'))


def test_a_second_start_over_a_training_is_refused_with_the_words_that_go_on(finished, hgd, capsys):
    before = content(finished)
    assert hgd('train', '--work-dir', finished) == 2
    error = capsys.readouterr().err
    assert 'holds a training, up to iter_4.pth' in error
    assert all(word in error for word in ('--resume', '--work-dir', '--anew'))
    after = content(finished)
    after.pop(Path('.lock'), None), before.pop(Path('.lock'), None)
    assert after == before


def test_begun_anew_the_earlier_training_is_kept_under_a_number(finished, hgd, capsys):
    before = content(finished)
    for number in (1, 2):
        assert hgd('train', '--work-dir', finished, '--anew', '--no-validate',
                   options=['train_cfg.max_iters=2']) == 0
        assert f'is now in {finished}.{number}' in capsys.readouterr().out
    kept = content(finished.with_name('run.1'))
    kept.pop(Path('.lock')), before.pop(Path('.lock'))
    assert kept == before and {path.name for path in finished.glob('*.pth')} == {'iter_2.pth'}
    assert main(['train', 'x', '--anew', '--resume']) == 2


def test_a_folder_without_a_checkpoint_is_simply_taken(finished, hgd):
    for path in finished.glob('*.pth'):
        path.unlink()
    (finished / 'last_checkpoint').unlink()
    assert hgd('train', '--work-dir', finished, '--no-validate', options=['train_cfg.max_iters=1']) == 0


def test_what_is_tested_writes_nothing_where_it_was_trained(config, finished, tmp_path, monkeypatch):
    """By the same config's name, whose training has its folder below work_dirs."""
    monkeypatch.chdir(tmp_path)
    home = Path('work_dirs', config.stem)
    home.parent.mkdir()
    finished.rename(home)
    before = content(home)
    assert main(['test', str(config), str(home / 'iter_4.pth')]) == 0
    evaluate(load_config(config, ['experiment_name=python']), str(home / 'iter_4.pth'))
    assert content(home) == before
    assert {path.name for path in Path('work_dirs').iterdir()} == {config.stem, 'test'}
    assert list(Path('work_dirs/test', config.stem).glob(f'{config.stem}.py'))


def test_a_test_in_the_folder_of_a_training_is_refused(finished, hgd, capsys):
    before = content(finished)
    assert hgd('test', finished / 'iter_4.pth', '--work-dir', finished) == 2
    assert 'is the folder of a training' in capsys.readouterr().err
    assert content(finished) == before
