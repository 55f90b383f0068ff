"""A run as its folder tells it."""
import subprocess
import sys

import pytest

from hgd_det.errors import UserError
from hgd_det.report.runs import class_aps, mean_ap, read_run, runs_in


def row(iteration, loss=1.0):
    return {'iter': iteration, 'loss': loss}


def test_a_finished_run_has_rows_figures_and_an_end(make_run):
    run = read_run(make_run('hgd', [[row(20), row(40), {
        'voc/mAP': 0.6, 'voc/AP50/disc': 0.7, 'voc/AP50/star': 0.5, 'voc/AP50_11points/disc': 0.1,
        'voc/AP75/disc': 0.2, 'step': 0}]], last='iter_40.pth', total=40))
    assert (run.name, run.config.name, run.total, run.finished) == ('hgd', 'student.py', 40, True)
    assert run.train == [row(20), row(40)] and run.final['iter'] == 40
    assert run.mAP == 0.6 and run.per_class == {'disc': 0.7, 'star': 0.5}


def test_what_a_resumed_run_logged_again_counts_once_and_as_the_later_log_says(make_run):
    run = read_run(make_run('run', [[row(20), row(40, 2.0), {'voc/mAP': 0.1}, row(60, 2.0)],
                                    [row(40, 3.0), row(60, 3.0), row(80, 3.0)]]))
    assert [(each['iter'], each['loss']) for each in run.train] == [
        (20, 1.0), (40, 3.0), (60, 3.0), (80, 3.0)]
    assert [each['iter'] for each in run.evaluations] == []  # it was made at 50, after 40


def test_an_evaluation_from_before_the_point_of_resuming_stays(make_run):
    run = read_run(make_run('run', [[row(20), row(40), {'voc/mAP': 0.1}, row(60)],
                                    [row(60), row(80), row(100), {'voc/mAP': 0.2}]]))
    assert [(each['iter'], mean_ap(each)) for each in run.evaluations] == [(50, 0.1), (100, 0.2)]


def test_a_new_run_in_an_old_folder_is_not_mixed_with_the_old_one(make_run):
    run = read_run(make_run('run', [[row(20), row(40), row(60)], [row(20, 5.0)]]))
    assert run.train == [row(20, 5.0)]


def test_evaluations_closer_than_rows_of_the_log_keep_their_places(make_run):
    config = 'train_cfg = dict(max_iters={total}, val_interval=10)\n'
    found = [{'voc/mAP': 0.1}, row(20), {'voc/mAP': 0.2}, {'voc/mAP': 0.3}, {'voc/mAP': 0.35}]
    run = read_run(make_run('run', [found], config, total=35))
    assert [each['iter'] for each in run.evaluations] == [10, 20, 30, 35]


def test_a_row_that_a_killed_run_left_half_written_is_passed_over(make_run):
    run = read_run(make_run('run', [[row(20), '{"iter": 40, "lo']]))
    assert run.train == [row(20)] and not run.finished and run.mAP is None and run.per_class == {}


@pytest.mark.parametrize('last, finished', [('iter_80.pth', False), ('iter_100.pth', True), ('', False)])
def test_a_run_is_finished_when_its_last_checkpoint_is_that_of_the_end(make_run, last, finished):
    assert read_run(make_run('run', [[row(20)]], last=last)).finished is finished


def only_tested(folder, text='model = 1', name='another.py', number=7):
    """What `hgd-det test` leaves in its folder."""
    data = folder / f'20260101_00000{number}' / 'vis_data'
    data.mkdir(parents=True)
    (folder / name).write_text(text)
    (data / 'config.py').write_text(text)
    (data.parent / f'{data.parent.name}.json').write_text('{"voc/mAP": 0.9}')
    return folder


@pytest.mark.parametrize('name', ['another.py', 'student.py'])
def test_a_config_that_a_later_test_left_is_not_taken_for_the_trained_one(make_run, name):
    folder = make_run('run', [[row(20), row(40), {'voc/mAP': 0.1}, row(60)]])
    before = read_run(folder)
    run = read_run(only_tested(folder, name=name))    # over the training's own, where they have one name
    assert run.values == before.values and run.values['train_cfg']['val_interval'] == 50
    assert run.evaluations == before.evaluations == [{'voc/mAP': 0.1, 'iter': 50}]


def test_a_folder_where_something_was_only_tested_is_no_run_and_no_row_of_a_report(make_run, tmp_path):
    from hgd_det.report.page import write_report
    ghost, run = only_tested(tmp_path / 'ghost'), make_run('run', [[row(20), {'voc/mAP': 0.1}]])
    with pytest.raises(UserError, match='holds no run'):
        read_run(ghost)
    said = []
    page = write_report([ghost, run], tmp_path / 'report.html', models=False, say=said.append).read_text()
    assert 'ghost' not in page and any('left out' in text and 'ghost' in text for text in said)
    with pytest.raises(UserError, match='holds no run'):
        write_report([ghost], tmp_path / 'none.html', models=False)


def test_figures_of_other_metrics_are_found_too():
    coco = {'coco/bbox_mAP': 0.3, 'coco/bbox_mAP_50': 0.5, 'coco/AP/cat': 0.2}
    assert mean_ap(coco) == 0.3 and class_aps(coco) == {'cat': 0.2}
    assert mean_ap({'pascal_voc/mAP': 0.7}) == 0.7 and mean_ap({'time': 1.0}) is None


def test_generations_are_runs_of_their_own_in_their_order(make_run, tmp_path):
    for number in (2, 10, 1):
        make_run(f'chain/gen{number}', [[row(20)]])
    assert [run.name for run in runs_in(tmp_path / 'chain')] == ['chain/gen1', 'chain/gen2', 'chain/gen10']


def test_a_folder_without_a_run_is_refused_with_what_is_wanted(tmp_path):
    with pytest.raises(UserError, match='holds no run'):
        read_run(tmp_path)
    with pytest.raises(UserError, match='does not exist; give the work directory'):
        read_run(tmp_path / 'none')


def test_reading_runs_imports_no_torch():
    code = 'import sys, hgd_det.report.runs; assert "torch" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True)
