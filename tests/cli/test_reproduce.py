import pytest

from hgd_det.cli.main import main
from hgd_det.experiments.results import COLUMNS


def test_a_dry_run_lists_the_cells_and_prints_the_table_and_runs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ['--scale', 'shapes', '--seeds', '0,7', '--results', 'r.csv']
    assert main(['reproduce', '4', '--dry-run', *arguments]) == 0
    out = capsys.readouterr().out
    assert '15 of 15 cells to run' in out
    assert 'shapes hgd model.terms.hgd.select=heads seed 7' in out
    assert 'Table 4: ablation' in out and 'Too few lines' in out
    assert not list(tmp_path.iterdir())


def test_the_rows_of_the_project_count_as_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['reproduce', '3', '--scale', 'shapes', '--dry-run']) == 0
    out = capsys.readouterr().out
    assert '0 of 16 cells to run' in out and 'measured at' in out and 'AP by class' in out


@pytest.mark.parametrize('arguments, message', [
    (['9'], "table '9'"), (['1', '--scale', 'coco'], '--scale voc or shapes'),
    (['4', '--seeds', 'x'], '--seeds x'), (['4', '--seeds', '0'], '--seeds 0'),
    (['4', '--results', 'bad.csv'], 'has the columns a, b')])
def test_what_makes_no_sense_is_refused(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'bad.csv').write_text('a,b\n')
    assert main(['reproduce', *arguments, '--dry-run']) == 2
    assert message in capsys.readouterr().err


def test_options_for_all_cells_make_other_cells(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'r.csv').write_text(','.join(COLUMNS) + '\n')
    assert main(['reproduce', '3', '--scale', 'shapes', '--seeds', '1', '--results', 'r.csv', '--dry-run',
                 '--cfg-options', 'train_cfg.max_iters=2']) == 0
    assert 'shapes hint train_cfg.max_iters=2 seed 0' in capsys.readouterr().out
