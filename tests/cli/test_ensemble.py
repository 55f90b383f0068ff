"""`test` without a checkpoint: an ensemble's config names its own."""
import json

import pytest

from hgd_det.checkpoint import sha256


@pytest.fixture
def ensemble(config, trained, tmp_path):
    path = tmp_path / 'ensemble.py'
    members = [dict(config=str(config), checkpoint=str(trained))]
    path.write_text(f'_base_ = {str(config)!r}\n'
                    f"model = dict(_delete_=True, type='Ensemble', members={members!r})\n")
    return path


def test_an_ensemble_of_one_has_its_members_figures(ensemble, trained, hgd, tmp_path):
    last = trained / 'iter_4.pth'
    assert hgd('test', '--json', tmp_path / 'one.json', '--work-dir', tmp_path, last) == 0
    assert hgd('test', '--json', tmp_path / 'all.json', '--work-dir', tmp_path, config=ensemble) == 0
    alone, together = (json.loads((tmp_path / name).read_text()) for name in ('one.json', 'all.json'))
    assert alone['metrics'] == together['metrics']
    assert together['checkpoint'] == [alone['checkpoint']]
    assert alone['checkpoint']['sha256'] == sha256(last)


def test_a_single_detector_needs_a_checkpoint(hgd, tmp_path, capsys):
    assert hgd('test', '--work-dir', tmp_path) == 2
    assert 'CHECKPOINT to test is missing' in capsys.readouterr().err


def test_an_ensemble_is_not_trained(ensemble, hgd, tmp_path, capsys):
    assert hgd('train', '--work-dir', tmp_path, config=ensemble) == 2
    assert 'train its members' in capsys.readouterr().err
