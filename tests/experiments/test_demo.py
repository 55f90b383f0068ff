"""The demo, from nothing to its report, with a handful of steps on a handful of drawings."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hgd_det.errors import UserError
from hgd_det.experiments.demo import Settings

ROOT = Path(__file__).resolve().parents[2]
SMALL = ['--images', '24', '--cfg-options', 'train_dataloader.batch_size=2', 'train_dataloader.num_workers=0',
         'train_dataloader.persistent_workers=False', 'val_dataloader.num_workers=0',
         'val_dataloader.persistent_workers=False', 'default_hooks.checkpoint.interval=2',
         'default_hooks.logger.interval=1']


def start(folder, steps):
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    # as on a machine that is not on any network: nothing can be looked up
    env |= {name: 'http://127.0.0.1:9' for name in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY')}
    command = [sys.executable, '-m', 'hgd_det.cli.main', 'demo', '--work-dir', 'demo', '--steps', str(steps)]
    return subprocess.Popen([*command, *SMALL], cwd=folder, env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='processes of Linux')
def test_it_goes_from_nothing_to_a_report_and_on_from_where_it_was_stopped(tmp_path):
    steps, demo = 12, tmp_path / 'demo'
    first = start(tmp_path, steps)
    while not list((demo / 'student').glob('iter_2.pth')):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    out, said = first.communicate()
    assert first.returncode == 130 and 'the same command goes on from here' in said
    assert 'Traceback' not in said
    saved = (demo / 'student/last_checkpoint').read_text()
    assert not (demo / 'hgd').exists() and not saved.endswith(f'iter_{steps}.pth')

    second = start(tmp_path, steps)
    out, said = second.communicate()
    assert second.returncode == 0, said
    assert '[2/7] already done: train the teacher' in said and '[3/7] train the student alone' in said
    log = next(iter(sorted((demo / 'student').glob('2*'))[-1].glob('*.log'))).read_text()
    assert 'resumed' in log.lower()
    rows = [json.loads(line) for path in (demo / 'student').glob('*/vis_data/scalars.json')
            for line in path.read_text().splitlines()]
    assert sorted({row['iter'] for row in rows if 'iter' in row}) == list(range(1, steps + 1))

    lines = out.splitlines()
    assert [line.strip().split('  ')[0] for line in lines if ' ms' in line] == [
        'teacher', 'student alone', 'student with HGD', 'exported to ONNX']
    assert '1.63 M' in out and '0.47 M' in out and lines[-1] == 'report: demo/report.html'
    assert '<html' in (demo / 'report.html').read_text()
    assert {path.name for path in (demo / 'export').iterdir()} >= {'model.pth', 'model.onnx', 'model.md'}
    assert (demo / 'bench.json').exists()

    third = start(tmp_path, steps)
    again, said = third.communicate()
    assert third.returncode == 0 and said.count('already done') == 7 and again == out
    other = start(tmp_path, steps + 1)
    assert other.wait() == 2 and 'steps was 12, now 13' in other.stderr.read()


def test_a_folder_keeps_the_settings_of_its_demo(tmp_path):
    Settings(seed=1).keep(tmp_path)
    Settings(seed=1).keep(tmp_path)
    with pytest.raises(UserError, match='seed was 1, now 0'):
        Settings().keep(tmp_path)
    (tmp_path / 'demo.json').write_text('{')
    with pytest.raises(UserError, match='cannot be read'):
        Settings().keep(tmp_path)
