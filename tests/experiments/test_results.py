import csv
import multiprocessing
from pathlib import Path

import pytest

from hgd_det.errors import UserError
from hgd_det.experiments import results

ROOT = Path(__file__).resolve().parents[2]


def row(config='a', method='', options='', seed=0, **more):
    return dict(config=config, method=method, options=options, seed=str(seed), mAP='0.5000', commit='abc',
                **more)


def test_a_row_is_added_once_and_the_first_one_stays(tmp_path):
    file = tmp_path / 'new/results.csv'
    assert results.add(row(mAP_11points='0.4'), file)
    assert not results.add(row() | {'mAP': '0.9000'}, file)
    assert results.add(row(seed=1), file) and results.add(row(options='a=1'), file)
    assert results.add(row(method='hgd'), file)
    rows = results.read(file)
    assert list(rows) == [('a', '', '', 0), ('a', '', '', 1), ('a', '', 'a=1', 0), ('a', 'hgd', '', 0)]
    assert rows['a', '', '', 0]['mAP'] == '0.5000'
    assert results.add(row() | {'mAP': '0.9000'}, file, replace=True)
    assert [each['mAP'] for each in results.read(file).values()] == ['0.9000', *3 * ['0.5000']]
    assert [path.name for path in file.parent.iterdir()] == ['results.csv']    # no lock, no half file


def _add(file, worker):
    for seed in range(15):
        results.add(row(seed=seed, device=f'worker {worker}'), file)
        results.add(row(config=f'{worker}', seed=seed), file)


def test_two_processes_that_add_lose_and_double_nothing(tmp_path):
    file = tmp_path / 'results.csv'
    context = multiprocessing.get_context('fork')
    workers = [context.Process(target=_add, args=(file, number)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    with file.open(newline='') as lines:
        keys = [results.key(each) for each in csv.DictReader(lines)]
    assert len(keys) == len(set(keys)) == 3 * 15


@pytest.mark.parametrize('text, message', [
    ('config,seed\na,0\n', 'has the columns config, seed'),
    (','.join(results.COLUMNS) + '\na,b\n', 'line 2'),
    (','.join(results.COLUMNS) + '\n' + 'x,' * 14 + 'x\n', 'its seed is no number')])
def test_another_kind_of_file_is_refused_and_left_as_it_is(tmp_path, text, message):
    file = tmp_path / 'results.csv'
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        results.add(row(), file)
    assert file.read_text() == text


@pytest.mark.parametrize('name', ['shapes', 'bccd'])
def test_the_files_of_the_project_are_read_and_written_back_the_same(name, tmp_path):
    file = tmp_path / 'copy.csv'
    file.write_bytes((ROOT / f'results/{name}.csv').read_bytes())
    before, rows = file.read_text(), results.read(file)
    first = next(iter(rows.values()))
    assert results.add(first, file, replace=True) and file.read_text() == before
    assert abs(sum(each := results.read_classes(first['per_class']).values()) / len(each)
               - float(first['mAP'])) < 1e-3


def test_classes_may_have_spaces_in_their_names():
    values = {'traffic light': 0.25, 'AP50': 0.5, 'cat': -1.0}
    assert results.read_classes(results.write_classes(values)) == values


def test_one_value_has_no_spread():
    assert results.mean_and_spread([3.0]) == (3.0, None)
    assert results.mean_and_spread([1.0, 3.0]) == (2.0, 2 ** 0.5)
