import json

import pytest

from hgd_det.cli.main import main


@pytest.mark.parametrize('arguments', [['--steps', '0'], ['--images', '5'], ['--work-dir', 'a-file']])
def test_what_makes_no_sense_is_refused(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a-file').write_text('')
    with pytest.raises(SystemExit) as end:
        main(['demo', *arguments])
    assert end.value.code == 2 and arguments[0] in capsys.readouterr().err


def test_a_demo_with_other_settings_is_not_gone_on_with(tmp_path, capsys):
    (tmp_path / 'demo.json').write_text(json.dumps(dict(seed=0, steps=500, images=3000, options=[])))
    assert main(['demo', '--work-dir', str(tmp_path), '--seed', '2']) == 2
    assert 'seed was 0, now 2' in capsys.readouterr().err
