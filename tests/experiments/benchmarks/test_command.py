"""tools/benchmark.py: every benchmark is found by its name and told in the table, in JSON and in CSV."""
import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hgd_det.experiments.benchmarks import command
from hgd_det.experiments.benchmarks.measure import compare

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def sums(monkeypatch):
    def run(options):
        yield compare('a sum', 'sums/s', lambda: sum(range(9999)), lambda: sum(range(9999)), work=1,
                      rounds=options.rounds, goal='>=100')

    monkeypatch.setitem(sys.modules, 'hgd_det.experiments.benchmarks.sums', SimpleNamespace(run=run))
    monkeypatch.setattr(command, 'NAMES', [*command.NAMES, 'sums'])


def test_a_benchmark_is_run_by_name_and_written_as_json(sums, tmp_path, capsys):
    out = tmp_path / 'found.json'
    assert command.main(['sums', '--rounds', '3', '--json', str(out)]) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ['benchmark', 'what', 'ours'] and line.startswith('sums       a sum')
    assert line.split()[-2:] == ['>=100', 'no']
    report = json.loads(out.read_text())
    assert [row['benchmark'] for row in report['rows']] == ['sums'] and report['versions']['numpy']


def test_the_rows_of_a_benchmark_take_the_place_of_its_former_ones(sums, tmp_path):
    out = tmp_path / 'found.csv'
    others = dict.fromkeys(command.COLUMNS, 'x')
    out.write_text(command.as_csv([others, others | dict(benchmark='sums')], command.COLUMNS))
    for _ in range(2):
        assert command.main(['sums', '--rounds', '1', '--csv', str(out)]) == 0
    rows = list(csv.DictReader(out.open()))
    assert [row['benchmark'] for row in rows] == ['sums', 'x'] and rows[1] == others
    assert rows[0]['what'] == 'a sum' and float(rows[0]['ratio']) > 0 and rows[0]['python']


def test_mistakes_are_told_in_a_sentence(tmp_path, capsys):
    assert command.main(['data', '--images', str(tmp_path)]) == 2
    assert 'has no image with boxes' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(['speed'])
    assert 'no benchmark speed; there is data' in capsys.readouterr().err


def test_the_tool_runs_from_any_folder(tmp_path):
    done = subprocess.run([sys.executable, ROOT / 'tools/benchmark.py', '--help'], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'of data' in done.stdout
