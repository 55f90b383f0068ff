import argparse
import json
import subprocess
import sys

import pytest

from hgd_det.cli import data
from hgd_det.errors import UserError


def call(*argv):
    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    return data.run(parser.parse_args([str(word) for word in argv]))


@pytest.fixture
def made(tmp_path):
    assert call('shapes', tmp_path / 's', '--train', 3, '--test', 2, '--workers', 1) == 0
    return tmp_path / 's'


def test_shapes_are_made_once_and_the_classes_are_printed(capsys, made):
    out = capsys.readouterr().out
    assert 'made' in out and "metainfo=dict(classes=('disc', 'square'" in out
    assert call('shapes', made, '--train', 3, '--test', 2) == 0
    assert 'already there' in capsys.readouterr().out
    with pytest.raises(UserError, match='--force'):
        call('shapes', made, '--train', 4, '--test', 2)


def test_hard_shapes_are_larger_and_have_ten_classes(tmp_path, capsys):
    assert call('shapes', tmp_path / 'h', '--train', 1, '--test', 1, '--hard') == 0
    assert "'arrow'" in capsys.readouterr().out
    made = json.loads((tmp_path / 'h/shapes.json').read_text())
    assert made['size'] == 160 and len(made['classes']) == 10


def test_check_ends_with_0_when_clean_and_1_when_not(made, tmp_path, capsys):
    assert call('check', made) == 0
    assert 'result: clean' in capsys.readouterr().out
    (made / 'VOC2007/JPEGImages/train_00002.jpg').write_bytes(b'')
    assert call('check', made, '--json', tmp_path / 'deep/r.json', '--write-clean',
                tmp_path / 'clean') == 1
    assert 'image_undecodable' in capsys.readouterr().out
    assert json.loads((tmp_path / 'deep/r.json').read_text())['clean'] is False
    assert call('check', tmp_path / 'clean') == 0
    assert (tmp_path / 'clean/VOC2007/ImageSets/Main/trainval.txt').read_text().split() == [
        'train_00001', 'train_00003']


def test_check_follows_the_given_classes(made, capsys):
    assert call('check', made, '--classes', 'disc') == 1
    assert 'class_unknown' in capsys.readouterr().out


def test_voc_is_prepared_from_a_folder_and_checked(made, tmp_path, capsys):
    assert call('voc', tmp_path / 'data', '--from', made, '--only', 'trainval2007', 'test2007') == 0
    out = capsys.readouterr().out
    assert 'result: clean' in out and 'VOC2007/test: 2 images' in out
    (made / 'VOC2007/Annotations/test_00001.xml').write_text('<annotation')
    assert call('voc', tmp_path / 'other', '--from', made) == 1
    assert call('voc', tmp_path / 'third', '--from', made, '--no-check') == 0


def test_without_workers_nothing_can_be_done(tmp_path):
    with pytest.raises(UserError, match='--workers'):
        call('check', tmp_path, '--workers', 0)


def test_the_verb_imports_only_the_standard_library():
    heavy = ('torch', 'mmdet', 'mmengine', 'cv2', 'numpy')
    code = ('import sys; import hgd_det.cli.data; '
            f'print([m for m in {heavy} if m in sys.modules])')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == '[]', out.stderr


def test_making_and_checking_need_neither_torch_nor_mmdet(made):
    code = (f'import sys; from hgd_det.data.check import check; check({str(made)!r}); '
            'print([m for m in ("torch", "mmdet", "mmengine") if m in sys.modules])')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == '[]', out.stderr
