"""`hgd-det report` and `hgd-det features`: arguments, and what they write."""
import re

import cv2
import pytest

from hgd_det.cli.main import main


def test_a_report_of_a_run_is_written_where_it_is_wanted(trained, tmp_path, capsys):
    out = tmp_path / 'new' / 'r.html'
    assert main(['report', str(trained), '--out', str(out), '--images', '1', '--title', 'Mine']) == 0
    assert re.fullmatch(rf'written to {out} \(\d\.\d MB\)', capsys.readouterr().out.splitlines()[-1])
    text = out.read_text()
    assert '<title>Mine</title>' in text and 'id="views"' in text and 'Who imitates whom' not in text


def test_without_models_nothing_is_opened(trained, tmp_path, capsys):
    assert main(['report', str(trained), '--out', str(tmp_path / 'r.html'), '--no-models']) == 0
    assert 'opening' not in capsys.readouterr().err
    assert 'id="views"' not in (tmp_path / 'r.html').read_text()


@pytest.mark.parametrize('argv, message', [
    (['none'], 'none does not exist'), (['.'], 'holds no run'), (['.', '--out', 'r.txt'], 'ends in .html'),
    (['.', '--score', '2'], 'between 0 and 1')])
def test_what_a_user_can_get_wrong_is_one_message(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['report', *argv]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_features_draws_a_row_per_detector_and_a_column_per_stage(config, trained, tmp_path, capsys):
    images = config.parent / 'data/VOC2007/JPEGImages'
    checkpoint = str(trained / 'iter_4.pth')
    assert main(['features', str(config), checkpoint, str(images / '000000.jpg'), str(images / '000001.jpg'),
                 '--beside', 'auto', checkpoint, '--stages', '24', '12', '--out', str(tmp_path / 'out')]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith('stages 24x24, 12x12')
    drawn = sorted((tmp_path / 'out').iterdir())
    assert [path.name for path in drawn] == ['000000.jpg.features.png', '000001.jpg.features.png']
    height, width = cv2.imread(str(drawn[0])).shape[:2]
    original = cv2.imread(str(images / '000000.jpg')).shape
    assert width > 2.5 * height / 2 * original[1] / original[0]


def test_features_names_the_stages_there_are(config, trained, tmp_path, capsys):
    images = config.parent / 'data/VOC2007/JPEGImages'
    assert main(['features', 'auto', str(trained / 'iter_4.pth'), str(images), '--stages', '13', '--out',
                 str(tmp_path / 'out')]) == 2
    assert 'no detector has a stage of height 13; there are 96, 48, 24' in capsys.readouterr().err
