"""What a user can get wrong is named before anything slow; what `predict` does: tests/deploy."""
import pytest
from PIL import Image

from hgd_det.cli.main import main


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    Image.new('RGB', (9, 9)).save(tmp_path / 'x.png')


@pytest.mark.parametrize('argv, message', [
    (('none.png',), 'none.png does not exist'), (('empty',), 'holds no image'),
    (('x.png', '--score', '1.5'), 'between 0 and 1'), (('x.png', '--batch-size', '0'), '1 or more'),
    (('x.png', '--threads', '0'), '1 or more'), (('x.png', '--out', 'x.png'), 'is a file'),
    (('x.png',), 'model no_model.pth does not exist')])
def test_a_mistake_is_named(capsys, argv, message):
    assert main(['predict', 'no_model.pth', *argv, *(() if '--out' in argv else ('--out', 'out'))]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize('option', [('--config', 'c.py'), ('--cfg-options', 'a=1')])
def test_a_config_for_a_finished_program_is_refused(capsys, option):
    assert main(['predict', 'm.onnx', 'x.png', '--out', 'out', *option]) == 2
    assert 'are for checkpoints' in capsys.readouterr().err
