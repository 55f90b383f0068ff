"""Matrices of cells: what is run, what is not, and what is left of them after a kill."""
import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hgd_det.checkpoint import atomic_write
from hgd_det.errors import UserError
from hgd_det.experiments import comparison, results
from hgd_det.experiments.processes import Line as Screen
from hgd_det.experiments.processes import locked
from hgd_det.experiments.reproduce import Matrix, Room, plan, reproduce
from hgd_det.experiments.tables import Line, Table
from hgd_det.testing import tiny_ssd

sys.path.insert(0, str(Path(__file__).parent))
import fake_matrix  # noqa: E402

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(not sys.platform.startswith('linux'), reason='processes of Linux')]


def run(matrix):
    said = io.StringIO()
    return reproduce(matrix, Screen(said)), said.getvalue()


def rows(file):
    with file.open(newline='') as lines:
        return [results.key(row) for row in csv.DictReader(lines)]


def test_every_cell_is_run_once_its_teacher_first_and_becomes_a_row(tmp_path):
    matrix = fake_matrix.matrix(tmp_path)
    assert matrix.total == 7 and matrix.waiting[0].name == 'teacher_0'
    status, said = run(matrix)
    assert status == 0
    found = rows(tmp_path / 'results/fakes.csv')
    assert len(found) == len(set(found)) == 7
    row = results.read(matrix.file)[str(tmp_path / 'configs/hgd.py'), '', '', 1]
    assert (row['mAP'], row['mAP_11points'], row['iterations'], row['device'], row['per_class']) == (
        '0.5000', '0.4500', '40', 'a fake device', 'disc=0.4000 ring=0.6000')
    assert row['torch'] and row['python'] and int(row['seconds']) > 0
    again = fake_matrix.matrix(tmp_path)
    assert not again.waiting and '0 of 7 cells to run' in plan(again)
    assert run(again)[0] == 0 and rows(matrix.file) == found
    text = comparison.show(matrix.tables[0], results.read(matrix.file))
    assert '50.0 ± 0.0 (2)' in text


def test_a_cell_that_fails_is_told_with_the_end_of_its_log_and_the_others_go_on(tmp_path):
    matrix = fake_matrix.matrix(tmp_path, bad='hgd_1')
    status, said = run(matrix)
    assert status == 1 and len(rows(matrix.file)) == 6
    assert 'hgd.py seed 1' in said and 'exit status 1' in said and 'failed as it was told to' in said
    # mended, it goes on from its last checkpoint
    assert run(fake_matrix.matrix(tmp_path))[0] == 0 and len(rows(matrix.file)) == 7
    assert (tmp_path / 'work/hgd_1/starts').read_text().split() == ['0', '20']


def test_what_a_failed_teacher_should_teach_is_not_run(tmp_path):
    matrix = fake_matrix.matrix(tmp_path, bad='teacher_0')
    status, said = run(matrix)
    assert status == 1 and {Path(key[0]).stem for key in rows(matrix.file)} == {'student'}
    assert said.count('its teacher failed') == 4 and not (tmp_path / 'work/hint_0').exists()


def test_a_row_that_is_there_counts_and_a_needed_teacher_is_trained_all_the_same(tmp_path):
    names = {name: str(tmp_path / f'configs/{name}.py') for name in fake_matrix.NAMES}
    file = tmp_path / 'results/fakes.csv'
    for name, seed in (('teacher', 0), ('student', 0), ('hgd', 0), ('hgd', 1)):
        results.add(dict(config=names[name], method='', options='', seed=str(seed), mAP='0.9000',
                         iterations='7', commit='old'), file)
    matrix = fake_matrix.matrix(tmp_path)
    assert [cell.name for cell in matrix.waiting] == ['teacher_0', 'hint_0', 'student_1', 'hint_1']
    assert run(matrix)[0] == 0
    found = results.read(file)
    assert len(found) == 7 and found[names['teacher'], '', '', 0]['mAP'] == '0.9000'
    text = comparison.show(matrix.tables[0], found)
    assert 'old (4 rows)' in text and '7 or 40 iterations' in text


def test_again_measures_what_another_commit_measured_and_keeps_the_old_run(tmp_path, monkeypatch):
    monkeypatch.setattr(results, 'commit', lambda: 'one')
    assert run(fake_matrix.matrix(tmp_path))[0] == 0
    assert not fake_matrix.matrix(tmp_path, again=True).waiting
    monkeypatch.setattr(results, 'commit', lambda: 'two')
    matrix = fake_matrix.matrix(tmp_path, again=True)
    assert len(matrix.waiting) == 7 and run(matrix)[0] == 0
    assert {row['commit'] for row in results.read(matrix.file).values()} == {'two'}
    assert len(rows(matrix.file)) == 7 and (tmp_path / 'work/hgd_0.one/cell.json').exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    matrix = fake_matrix.matrix(tmp_path)
    matrix.work(next(iter(matrix.cells))).note('abc')
    record = tmp_path / 'work/teacher_0/cell.json'
    atomic_write(record.read_text().replace('"seed": 0', '"seed": 5'), record)
    status, said = run(matrix)
    assert status == 1 and 'seed 5, not of' in said and not (tmp_path / 'work/teacher_0/starts').exists()
    assert len(rows(matrix.file)) == 2    # the students alone


def test_a_cell_of_a_time_when_a_method_was_a_file_is_gone_on_with(tmp_path):
    from hgd_det.experiments.cells import Cell, Work
    work = Work(Cell('shapes', 'hgd', '', 1), tmp_path)
    before = dict(config='configs/shapes/hgd.py', options='', seed=1, commits=['abc'])
    (tmp_path / 'cell.json').write_text(json.dumps(before))
    work.note('def')
    assert work.record() == dict(config='shapes', method='hgd', options='', seed=1, commits=['abc', 'def'])
    with pytest.raises(UserError, match='is of shapes hgd seed 1, not of shapes hint seed 1'):
        Work(Cell('shapes', 'hint', '', 1), tmp_path).record()


def test_a_second_one_in_the_same_folder_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match='another process works in'):
        with locked(tmp_path, patience=0.1):
            raise AssertionError
    with locked(tmp_path, patience=0.1):
        pass


def start(tmp_path, steps):
    env = dict(os.environ, PYTHONPATH=str(Path(fake_matrix.__file__).parents[2]))
    return subprocess.Popen([sys.executable, fake_matrix.__file__, str(tmp_path), str(steps)], env=env,
                            stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM], ids=['killed', 'told to stop'])
def test_killed_anywhere_it_goes_on_from_the_running_cells_last_checkpoint(tmp_path, number):
    steps, kills, chance = 120, 3, random.Random(0)
    work = tmp_path / 'work'
    for _ in range(kills):
        process = start(tmp_path, steps)
        before = sum(len(path.read_text()) for path in work.glob('*/starts'))
        while process.poll() is None and sum(len(p.read_text()) for p in work.glob('*/starts')) == before:
            time.sleep(0.05)
        time.sleep(chance.uniform(0.2, 1.0))
        process.send_signal(number)
        process.wait()
    assert start(tmp_path, steps).wait() == 0
    found = rows(tmp_path / 'results/fakes.csv')
    assert len(found) == len(set(found)) == 7
    assert not list(work.glob('*/overlap'))
    starts = [list(map(int, path.read_text().split())) for path in work.glob('*/starts')]
    assert all(each == sorted(each) and each[0] == 0 for each in starts)
    # no finished cell was begun again, and of the interrupted ones some had got on
    assert sum(map(len, starts)) <= 7 + 2 * kills and max(max(each) for each in starts) > 0


STUDENT = '''
_base_ = {config!r}
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_iters=2, val_interval=2)
param_scheduler = [dict(type='OneCycleLR', eta_max=1e-3, total_steps=8, by_epoch=False)]
'''
TAUGHT = '''
_base_ = './student.py'
model = dict(_delete_=True, type='Distiller', student={{{{_base_.model}}}}, input_size=96,
             teacher=dict(model={teacher!r}, checkpoint='nowhere'),
             terms=dict(hgd=dict(type='HGD', weight=1.0)))
custom_hooks = [dict(type='DistillHook')]
'''


@pytest.mark.slow
def test_real_cells_of_two_steps_come_through_a_kill(config, tmp_path):
    """A teacher, a student and a distillation; the process is killed once the teacher is a row."""
    (tmp_path / 'student.py').write_text(STUDENT.format(config=str(config)))
    teacher = tmp_path / 'teacher.py'
    teacher.write_text((tmp_path / 'student.py').read_text() + f'model = {tiny_ssd(1 / 8)!r}\n')
    (tmp_path / 'hgd.py').write_text(TAUGHT.format(teacher=str(teacher)))
    lines = tuple(Line(name, str(tmp_path / f'{name}.py'), paper={'mAP': paper}, single=name == 'teacher')
                  for name, paper in (('teacher', 76.7), ('student', 65.6), ('hgd', 72.6)))
    table, file = Table('4', 'tiny', 'shapes', lines), tmp_path / 'results.csv'

    def matrix():
        return Matrix([table], [0], tmp_path / 'work', file, Room(((),), 'a CPU'))

    child = os.fork()
    if not child:
        os._exit(run(matrix())[0])
    while not file.exists():
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.1)
    time.sleep(1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    status, said = run(matrix())
    assert status == 0, said
    assert [Path(key[0]).stem for key in rows(file)] == ['teacher', 'student', 'hgd']
    row = results.read(file)[str(tmp_path / 'hgd.py'), '', '', 0]
    assert row['iterations'] == '2' and row['per_class'].startswith('disc=')
    assert 'hgd' in comparison.show(table, results.read(file))


def test_a_run_that_was_killed_before_its_evaluation_is_only_tested(tmp_path):
    from hgd_det.experiments.cells import Cell, Work
    work = Work(Cell('shapes/student'), tmp_path)
    (tmp_path / '20260101_000000/vis_data').mkdir(parents=True)
    log = tmp_path / '20260101_000000/vis_data/scalars.json'
    log.write_text('{"iter": 250, "loss": 1.0}\n{"voc/mAP": 0.1}\n{"iter": 500, "loss": 1.0}\n')
    (tmp_path / 'student.py').write_text('train_cfg = dict(max_iters=500, val_interval=250)\n')
    (tmp_path / 'last_checkpoint').write_text('elsewhere/iter_250.pth')
    assert work.metrics() is None and '--resume' in work.command()
    (tmp_path / 'last_checkpoint').write_text('elsewhere/iter_500.pth')
    assert work.metrics() is None
    command = work.command()
    assert command[2] == 'test' and str(tmp_path / 'iter_500.pth') in command
    (tmp_path / 'test').mkdir()
    (tmp_path / 'test/test.json').write_text('{"metrics": {"voc/mAP": 0.7}}')
    assert work.metrics() == {'voc/mAP': 0.7} and work.command() is None
    (tmp_path / 'test/test.json').unlink()
    log.write_text(log.read_text() + '{"voc/mAP": 0.6}\n')
    assert work.metrics()['voc/mAP'] == 0.6


def test_gpus_are_shared_out_and_the_batch_stays_the_configs(monkeypatch, tmp_path):
    import torch

    from hgd_det.experiments.cells import Cell, Work
    from hgd_det.experiments.reproduce import room
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 5)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda number: 'a GPU')
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert room().slots == (('0',), ('1',), ('2',), ('3',), ('4',)) and room(2).slots == (('0',), ('1',))
    assert room(None, 2).slots == (('0', '1'), ('2', '3')) and room(None, 2).device == '2 x a GPU'
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '7,3,5,1,0')
    assert room(None, 2).slots == (('7', '3'), ('5', '1'))
    with pytest.raises(UserError, match='number of visible GPUs is 5'):
        room(None, 6)
    command = Work(Cell('shapes/student'), tmp_path, processes=2).command()
    assert '--nproc_per_node=2' in command and command[command.index('--launcher') + 1] == 'pytorch'
    assert 'train_dataloader.batch_size=16' in command
    with pytest.raises(UserError, match='batches of 32, which 3 GPUs'):
        Work(Cell('shapes/student'), tmp_path, processes=3).command()


@pytest.mark.parametrize('metrics, columns', [
    ({'voc/mAP': .5, 'voc/AP50': .5, 'voc/AP50/cat': .5, 'voc/mAP_11points': .4, 'voc/AP50_11points/cat': .4},
     ('0.5000', '0.4000', 'cat=0.5000')),
    ({'voc/mAP': .4, 'voc/AP50/cat': .4, 'voc/mAP_area': .5, 'voc/AP50_area/cat': .5},
     ('0.5000', '0.4000', 'cat=0.4000')),
    ({'coco/bbox_mAP': .2, 'coco/bbox_mAP_50': .3, 'coco/bbox_mAP_75': .1, 'coco/AP/traffic light': .2},
     ('0.2000', '', 'AP50=0.3000 AP75=0.1000 traffic light=0.2000'))],
    ids=['area first', 'points first', 'coco'])
def test_the_columns_of_an_evaluation(metrics, columns):
    from hgd_det.experiments.cells import figures
    assert tuple(figures(metrics)[name] for name in ('mAP', 'mAP_11points', 'per_class')) == columns


def test_a_run_counted_in_epochs_is_done_when_it_was_evaluated_after_its_last_row(tmp_path):
    from hgd_det.experiments.cells import Cell, Work
    work = Work(Cell('shapes/student'), tmp_path)
    work.note('abc')
    log = tmp_path / '20260101_000000/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    (tmp_path / 'student.py').write_text('train_cfg = dict(max_epochs=2, val_interval=1)\n')
    (tmp_path / 'last_checkpoint').write_text('epoch_2.pth')
    log.write_text('{"iter": 10, "epoch": 1}\n{"voc/mAP": 0.1}\n{"iter": 20, "epoch": 2}\n')
    assert work.metrics() is None and work.command()[2] == 'test'
    log.write_text(log.read_text() + '{"voc/mAP": 0.2, "voc/AP50/cat": 0.2}\n')
    assert work.command() is None and work.row('x')['iterations'] == '20' and work.row('x')['mAP'] == '0.2000'
