"""What may be written: by the file itself, whatever it is called."""
import os
from pathlib import Path

import pytest

from hgd_det.errors import UserError
from hgd_det.outputs import bases, keep_originals, named_files, training_of, would_overwrite

NAMES = {
    'its name': lambda path: path,
    'a path with ..': lambda path: path.parent / 'sub' / '..' / path.name,
    'a relative path': lambda path: Path(os.path.relpath(path)),
    'a link to it': lambda path: linked(path, os.symlink, path.parents[1]),
    'a hard link to it': lambda path: linked(path, os.link, path.parents[1]),
    'a link to its folder': lambda path: linked(path.parent, os.symlink, path.parents[1]) / path.name,
}


def linked(path: Path, link, beside: Path) -> Path:
    other = beside / f'other{path.suffix}'
    link(path, other)
    return other


@pytest.fixture
def original(tmp_path):
    path = tmp_path / 'given' / 'photo.jpg'
    (path.parent / 'sub').mkdir(parents=True)
    path.write_text('mine')
    return path


def training(folder: Path, sign: str) -> Path:
    (folder / sign).parent.mkdir(parents=True, exist_ok=True)
    (folder / sign).write_text('')
    return folder


@pytest.mark.parametrize('force', [False, True], ids=['', 'force'])
@pytest.mark.parametrize('name', NAMES)
def test_what_is_read_is_never_written(name, force, original):
    out = NAMES[name](original)
    reason = would_overwrite(out, [original], force=force)
    assert reason and 'which this command reads' in reason and str(out) in reason
    with pytest.raises(UserError, match='which this command reads'):
        keep_originals([original.with_name('new.jpg'), out], [original], force=force)


@pytest.mark.parametrize('force', [False, True], ids=['', 'force'])
@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('sign', ['iter_3.pth', 'best_voc_mAP_iter_3.pth', 'last_checkpoint',
                                  '20260102_030405/vis_data/scalars.json'])
def test_nothing_is_written_among_the_files_of_a_training(sign, name, force, tmp_path):
    folder = training(tmp_path / 'runs' / 'run', sign)
    (folder / 'sub').mkdir(exist_ok=True)
    out = NAMES[name](folder / 'config.py') if 'hard' not in name else folder / 'config.py'
    assert 'only training writes' in would_overwrite(out, force=force)
    assert training_of(folder / '20260102_030405' / 'note.txt') == folder
    assert would_overwrite(folder / 'export' / 'model.pth') is None    # a folder of its own


@pytest.mark.parametrize('name', NAMES)
def test_what_exists_is_replaced_with_force_only(name, original):
    out = NAMES[name](original)
    assert '--force' in would_overwrite(out)
    assert would_overwrite(out, force=True) is None


def test_a_link_that_leads_nowhere_is_there(tmp_path):
    (tmp_path / 'link').symlink_to(tmp_path / 'nothing')
    assert '--force' in would_overwrite(tmp_path / 'link')
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    assert '--force' in would_overwrite(tmp_path / 'loop', [tmp_path / 'loop'])


def test_a_folder_is_no_place_for_a_file(tmp_path):
    assert 'is a folder' in would_overwrite(tmp_path, force=True)


def test_new_places_may_be_written(tmp_path):
    assert would_overwrite(tmp_path / 'new' / 'deep' / 'x.json', [tmp_path / 'other']) is None


def test_a_config_names_files_and_builds_on_others(tmp_path):
    (tmp_path / 'base.py').write_text('model = 1')
    (tmp_path / 'more.yml').write_text('model: 1')
    (tmp_path / 'mine.py').write_text("_base_ = ['base.py', './more.yml']")
    (tmp_path / 'teacher.pth').write_text('weights')
    given = dict(a=[dict(checkpoint=str(tmp_path / 'teacher.pth'))], b='no such file', c=3,
                 d=(str(tmp_path / 'mine.py'),), e='x' * 5000, f='a\0b')
    found = {path.resolve() for path in named_files(given)}
    assert found == {tmp_path / name for name in ('teacher.pth', 'mine.py', 'base.py', 'more.yml')}
    assert set(bases(tmp_path / 'mine.py')) == {tmp_path / 'base.py', tmp_path / 'more.yml'}
