"""No verb writes over what it reads, nor among the files of a training; by the file itself, force or not."""
import json
import os
import shutil
from pathlib import Path

import pytest
from mmengine.config import Config

from hgd_det.cli.main import main, verbs
from hgd_det.testing import digests

pytestmark = pytest.mark.thorough

# what each verb writes: a command that would write the file {out}, in its folder {folder}
WRITERS = {
    'predict': ('predictions.json', 'predict {model} {photo} --out {folder} --no-pictures'),
    'predict, a picture': ('photo.jpg', 'predict {model} {photo} --out {folder}'),
    'predict, a picture of another folder': ('a/photo.jpg', 'predict {model} {photos} --out {folder}'),
    'export': ('x.pth', 'export {config} {model} {out}'),
    'export auto': ('x.pth', 'export auto {model} {out}'),
    'export of a distillation': ('x.pth', 'export {distill} {model} {out}'),
    'export to ONNX': ('x.onnx', 'export {config} {model} {out}'),
    'export, its config': ('x.py', 'export {config} {model} {folder}/x.pth'),
    'export, its card': ('model.md', 'export {config} {model} {folder}'),
    'export, its facts': ('annotations.json', 'export {config} {model} {folder}/annotations.onnx'),
    'quantize': ('x.onnx', 'quantize {onnx} {out} --images {photo}'),
    'report': ('x.html', 'report {run} --no-models --out {out}'),
    'features': ('photo.jpg.features.png', 'features auto {model} {photo} --out {folder}'),
    'bench': ('x.json', 'bench {model} --json {out} --repeat 1'),
    'inspect': ('x.json', 'inspect {config} --json {out}'),
    'cost': ('x.csv', 'cost {config} --reference {config} --csv {out} --repeat 1'),
    'test': ('x.json', 'test {config} {model} --json {out} --work-dir {work}'),
    'data': ('x.json', 'data check {config} --json {out}'),
}
# and what keeps originals by other means, or writes nothing
OTHERWISE = {'train', 'demo', 'reproduce', 'doctor', 'methods'}


@pytest.fixture
def given(sound, tmp_path):
    """Copies of what commands are given, so that nothing of other tests is at stake; with a run's folder."""
    folder = tmp_path / 'given'
    (folder / 'a').mkdir(parents=True)
    for name, path in dict(photo=sound.image, onnx=sound.onnx, model=sound.student).items():
        shutil.copy(path, folder / f'{name}{path.suffix}')
    shutil.copy(sound.image, folder / 'a' / 'photo.jpg')
    shutil.copytree(sound.run, tmp_path / 'run', ignore=shutil.ignore_patterns('*.onnx'))
    return dict(model=folder / 'model.pth', photo=folder / 'photo.jpg', photos=folder,
                onnx=folder / 'onnx.onnx', run=tmp_path / 'run', work=tmp_path / 'work',
                config=sound.config, distill=sound.distill)


def refused(command: str, message: str, capfd, *kept: Path) -> str:
    """With and without --force; the folders `kept` are as they were."""
    before = digests(*kept)
    for words in (command.split(), [*command.split(), '--force']):
        capfd.readouterr()
        try:
            status = main(words)
        except SystemExit as stop:
            status = stop.code
        said = capfd.readouterr()
        assert status == 2 and message in said.err and 'Traceback' not in said.err, (status, said.err)
        assert digests(*kept) == before
    return said.err


def command(writer: str, out: Path, given) -> str:
    name, text = WRITERS[writer]
    up = len(Path(name).parts)
    return text.format(out=out, folder=out.parents[up - 1], **given)


def test_every_verb_is_here():
    assert {text.split()[0] for _, text in WRITERS.values()} | OTHERWISE == verbs().keys()


@pytest.mark.parametrize('place', ['a new file', 'an old file', 'by a link to the folder', 'by ..',
                                   'in the folder of a start'])
@pytest.mark.parametrize('writer', WRITERS)
def test_no_verb_writes_among_the_files_of_a_training(writer, place, given, tmp_path, capfd):
    name = WRITERS[writer][0]
    if '/' in name:
        pytest.skip('a folder of its own')
    run = given['run']
    if place == 'an old file':
        (run / name).write_text('{}')
    folder = {'by a link to the folder': tmp_path / 'link', 'by ..': run / '..' / 'run',
              'in the folder of a start': run / '20260102_030405'}.get(place, run)
    (tmp_path / 'link').symlink_to(run)
    (run / '20260102_030405').mkdir()
    refused(command(writer, folder / name, given), 'only training writes', capfd, run)


@pytest.mark.parametrize('writer', WRITERS)
def test_what_exists_is_written_over_with_force_only(writer, given, tmp_path, capfd):
    out = tmp_path / 'out' / WRITERS[writer][0]
    out.parent.mkdir(parents=True)
    out.write_text('{}')
    words = command(writer, out, given).split()
    assert main(words) == 2 and '--force' in capfd.readouterr().err
    assert out.read_text() == '{}' and digests(tmp_path / 'out').keys() == {out}


WAYS = {
    'itself': lambda file, place: file,
    '..': lambda file, place: file.parent / '..' / file.parent.name / file.name,
    'a link': lambda file, place: _made(place, lambda: place.symlink_to(file)),
    'a hard link': lambda file, place: _made(place, lambda: os.link(file, place)),
    'a link to its folder': lambda file, place: _made(place.parent, lambda: place.parent.symlink_to(
        file.parent)) / file.name,
}


def _made(place: Path, make):
    place.parent.mkdir(parents=True, exist_ok=True)
    make()
    return place


def _original(kind: str, given, tmp_path, suffix: str) -> Path:
    """A file that is read, by the suffix that the output needs."""
    return given[kind] if kind in given else tmp_path / f'{kind}{suffix}'


# writer: which of its inputs may have the name of the output
READ = {
    'predict, a picture': 'photo', 'export': 'model', 'export auto': 'model', 'quantize': 'onnx',
    'bench': 'map', 'inspect': 'config', 'cost': 'config', 'test': 'config', 'data': 'config',
    'report': 'bench', 'features': 'photo'}


@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('writer', READ)
def test_no_verb_writes_over_what_it_reads(writer, way, given, tmp_path, capfd):
    kind, text = READ[writer], WRITERS[writer][1]
    if kind == 'config' and writer != 'cost' or kind == 'map':    # a config by the suffix of the output
        file = tmp_path / 'configs' / 'x.json'
        file.parent.mkdir()
        file.write_text(json.dumps(Config.fromfile(given['config']).to_dict()))
        given['config'] = file
        text += ' --map {config}' if kind == 'map' else ''
    elif kind == 'config':
        file = tmp_path / 'configs' / 'x.py'
        file.parent.mkdir()
        shutil.copy(given['config'], file)
        given['config'] = file
    elif kind == 'bench':
        file = tmp_path / 'benches' / 'x.html'
        file.parent.mkdir()
        file.write_text('{}')
        text += f' --bench {file}'
    else:
        file = given[kind]
    if writer == 'features':    # its outputs have names of their own
        if 'link' not in way or 'folder' in way:
            pytest.skip('no file of this name is read')
        out = WAYS[way](file, tmp_path / 'out' / 'photo.jpg.features.png')
    else:
        out = WAYS[way](file, tmp_path / 'out' / file.name)
    refused(text.format(out=out, folder=out.parent, **given), 'which this command reads', capfd, file.parent)


NAMED = {
    'a teacher': ('teacher_weights', '.pth'), 'the config of a teacher': ('teacher', '.py'),
    'a base': ('config', '.py'), 'the config': ('distill', '.py')}


@pytest.mark.parametrize('way', [name for name in WAYS if 'folder' not in name])
@pytest.mark.parametrize('name', NAMED)
def test_nor_over_what_the_config_names(name, way, sound, given, tmp_path, capfd):
    """Copies of the teacher, its config, the distillation and its base, with paths to one another."""
    folder = tmp_path / 'mine'
    folder.mkdir()
    texts = {}
    for key in ('config', 'teacher', 'distill'):
        path = getattr(sound, key)
        texts[key] = path.read_text()
        for other in ('config', 'teacher', 'teacher_weights'):
            old = getattr(sound, other)
            texts[key] = texts[key].replace(repr(str(old)), repr(str(folder / f'{other}{old.suffix}')))
        (folder / f'{key}.py').write_text(texts[key])
    shutil.copy(sound.teacher_weights, folder / 'teacher_weights.pth')
    key, suffix = NAMED[name]
    out = WAYS[way](folder / f'{key}{suffix}', tmp_path / 'out' / f'x{suffix}').with_suffix('.pth')
    refused(f'export {folder}/distill.py {given["model"]} {out}', 'which this command reads', capfd, folder)


def test_a_linked_folder_of_photos_is_the_folder_itself(given, tmp_path, capfd):
    (tmp_path / 'link').symlink_to(given['photos'])
    command = f'predict {given["model"]} {given["photos"]} --out {tmp_path / "link"}'
    refused(command, 'which this command reads', capfd, given['photos'])


def test_with_force_outputs_are_replaced_and_nothing_else(given, tmp_path, capfd):
    out = tmp_path / 'out'
    before = digests(given['photos'], given['run'])
    for command in (f'predict {given["model"]} {given["photo"]} --out {out}',
                    f'export auto {given["model"]} {out}', f'inspect {given["config"]} --json {out}/x.json'):
        for words in (command.split(), [*command.split(), '--force']):
            assert main(words) == 0, capfd.readouterr().err
        assert not [path for path in out.rglob('*') if path.name.startswith('.')]
        assert main(command.split()) == 2
    assert digests(given['photos'], given['run']) == before
