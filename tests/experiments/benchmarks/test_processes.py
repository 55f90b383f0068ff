"""The benchmark of processes trains for real."""
from types import SimpleNamespace

import pytest

from hgd_det.data import shapes
from hgd_det.errors import UserError
from hgd_det.experiments.benchmarks import processes


def test_what_is_set_beside_what(monkeypatch):
    asked = []

    def throughput(folder, count, workers):
        asked.append((count, workers))
        return {(1, 0): 10, (1, 1): 20, (1, 2): 30, (2, 1): 36}[count, workers]
    monkeypatch.setattr(processes, 'throughput', throughput)
    monkeypatch.setattr(shapes, 'generate', lambda *args, **options: None)
    rows = list(processes.run(SimpleNamespace(rounds=2)))
    assert asked == 2 * [(1, 0), (1, 1), (1, 2), (2, 1)]
    assert [(row.ours, row.other, row.ratio) for row in rows] == [(36, 20, 1.8), (20, 10, 2), (30, 10, 3)]


@pytest.mark.slow
def test_two_processes_train_and_one_that_cannot_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, 'WARM', 1)
    monkeypatch.setattr(processes, 'STEPS', 2)
    monkeypatch.setattr(processes, 'BATCH', 4)
    shapes.generate(tmp_path / 'data', train=8, test=1)
    assert 0.1 < processes.throughput(tmp_path, 2, 0) < 1e4
    monkeypatch.setattr(processes, 'PAIR', 'no_such')
    with pytest.raises(UserError, match=r'training with 1 processes failed; [\s\S]*no_such') as raised:
        processes.throughput(tmp_path, 1, 0)
    assert 'ChildFailedError' not in str(raised.value)     # what torchrun adds
