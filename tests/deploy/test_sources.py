"""Each file that is meant comes once, in order, under a name that no other has."""
from pathlib import Path

import pytest

from hgd_det.deploy.sources import Source, check_places, collect
from hgd_det.errors import UserError


def names(inputs, out='out'):
    return [source.name for source in collect(inputs, out)]


def make(folder: Path, *files: str) -> list[Path]:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return [folder / file for file in files]


def test_equal_names_are_told_apart_by_the_folders_above(tmp_path):
    files = make(tmp_path, 'one/a/x.png', 'two/a/x.png', 'two/b/x.png', 'two/b/y.png')
    assert names(files) == ['one/a/x.png', 'two/a/x.png', 'b/x.png', 'y.png']
    assert names([tmp_path / 'one/a', tmp_path / 'two/b']) == ['a/x.png', 'b/x.png', 'y.png']
    assert names([tmp_path / 'one', tmp_path / 'two']) == [
        'one/a/x.png', 'two/a/x.png', 'b/x.png', 'b/y.png']


def test_a_file_named_twice_is_meant_once(tmp_path, monkeypatch):
    make(tmp_path, 'in/x.png')
    monkeypatch.chdir(tmp_path)
    assert names(['in/x.png', tmp_path / 'in', 'in/../in/x.png']) == ['x.png']


def test_files_at_the_root_keep_a_name_below_the_folder(monkeypatch):
    monkeypatch.setattr(Path, 'exists', lambda self: True)
    monkeypatch.setattr(Path, 'is_dir', lambda self: False)
    assert names(['/x.png', '/d/x.png', '/e/d/x.png']) == ['x.png', 'd/x.png', 'e/d/x.png']


def test_a_folder_stands_for_its_images_in_order_without_hidden_ones_and_earlier_output(tmp_path):
    make(tmp_path, 'b.JPG', 'a.png', 'sub/c.webp', '.d.png', '.hidden/e.png', 'out/f.png', 'g.txt', 'h.mp4')
    assert names([tmp_path], tmp_path / 'out') == ['a.png', 'b.JPG', 'sub/c.webp']


def test_what_is_not_there_is_named(tmp_path):
    make(tmp_path, 'h.mp4')
    with pytest.raises(UserError, match='none.png does not exist'):
        collect([tmp_path / 'none.png'], 'out')
    with pytest.raises(UserError, match='holds no image'):
        collect([tmp_path], 'out')


def test_no_picture_takes_the_place_of_an_original_or_of_another_picture(tmp_path):
    original = Source(tmp_path / 'x.png', 'x.png')
    original.path.write_text('mine')
    check_places([original], [tmp_path / 'out/x.png'])
    with pytest.raises(UserError, match='would overwrite'):
        check_places([original], [tmp_path / 'x.png'])
    two = [Source(tmp_path / 'x.gif', 'x.gif'), Source(tmp_path / 'x.gif.png', 'x.gif.png')]
    with pytest.raises(UserError, match='would overwrite'):
        check_places(two, [tmp_path / 'out/x.gif.png'] * 2)
