"""Files that were made to do harm: nothing in them is executed, memory stays bounded, and the message says
what was found.
"""
import builtins
import functools
import io
import json
import operator
import os
import pickle
import pty
import runpy
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from hgd_det.checkpoint import load
from hgd_det.cli.main import main
from hgd_det.testing import digests, png

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = dict(weight=torch.ones(3, 4))


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class SetState:
    """Pickles as a function's result whose state is set: the opcode BUILD."""

    def __init__(self, hit):
        self.hit = hit

    def __reduce__(self):
        return functools.partial, (os.mkdir,), (os.mkdir, (self.hit,), {}, None)


def opcodes(text: str) -> bytes:
    """A pickle of protocol 0 or 1 written by hand."""
    return text.encode('latin1')


def pickled(content) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state_dict=WEIGHTS, meta=content), buffer)
    return buffer.getvalue()


def hidden(hit: Path) -> bytes:
    """A sound checkpoint of the old format, and a second pickle behind it."""
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer, _use_new_zipfile_serialization=False)
    return pickle.dumps(Call(os.mkdir, str(hit))) + buffer.getvalue()


# name: the file for a folder that must not come to be, and what the message names
PROGRAMS = {
    'os.system': (lambda hit: pickled(Call(os.system, f'mkdir {hit}')), 'posix.system'),
    'eval': (lambda hit: pickled(Call(builtins.eval, f"__import__('os').mkdir({str(hit)!r})")),
             'builtins.eval'),
    'exec': (lambda hit: pickled(Call(builtins.exec, f'import os; os.mkdir({str(hit)!r})')), 'builtins.exec'),
    'compile': (lambda hit: pickled(Call(builtins.compile, 'x', 'x', 'exec')), 'builtins.compile'),
    'a subprocess': (lambda hit: pickled(Call(subprocess.Popen, ['mkdir', str(hit)])), 'subprocess.Popen'),
    'a shell': (lambda hit: pickled(Call(pty.spawn, ['mkdir', str(hit)])), 'pty.spawn'),
    'a file that is run': (lambda hit: pickled(Call(runpy.run_path, 'evil.py')), 'runpy.run_path'),
    'an import': (lambda hit: opcodes('cevil\nThing\n.'), 'evil.Thing'),
    'an import and a call': (lambda hit: opcodes('cevil\nThing\n(tR.'), 'evil.Thing'),
    'an import by INST': (lambda hit: opcodes('(ievil\nThing\n.'), 'Unsupported operand 105'),
    'an import by OBJ': (lambda hit: opcodes('(cevil\nThing\no.'), 'evil.Thing'),
    'an import by STACK_GLOBAL': (lambda hit: b'\x80\x04\x8c\x04evil\x8c\x05Thing\x93.', 'evil.Thing'),
    'an attribute of an attribute': (
        lambda hit: pickled(Call(getattr, Call(getattr, dict, '__class__'), '__subclasses__')),
        'builtins.dict'),
    'a partial': (lambda hit: pickled(Call(functools.partial, os.mkdir, str(hit))), 'functools.partial'),
    'a state': (lambda hit: pickled(SetState(str(hit))), 'functools.partial'),
    'an attribute getter': (lambda hit: pickled(Call(operator.attrgetter, 'x')), 'operator.attrgetter'),
    'a checkpoint within': (
        lambda hit: pickled(Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.mkdir, str(hit))))),
        'torch.storage._load_from_bytes'),
    'a file that is loaded': (lambda hit: pickled(Call(torch.load, 'other.pth', None, None)), 'torch'),
    'a repository': (lambda hit: pickled(Call(torch.hub.load, 'a/b', 'c')), 'torch.hub.load'),
    'a model': (lambda hit: pickled(torch.nn.Linear(1, 1)), 'torch.nn.modules.linear.Linear'),
    'a lambda': (lambda hit: opcodes('ctypes\nFunctionType\n(tR.'), 'types.FunctionType'),
    'a second pickle': (hidden, 'posix.mkdir'),
}

# every way in which a checkpoint comes into the toolkit
ENTRANCES = {
    'test': 'test {config} bad.pth',
    'train from': 'train {config} --cfg-options load_from=bad.pth',
    'resume': 'train {config} --resume bad.pth --cfg-options work_dir=run',
    'teacher': 'train {distill} --cfg-options model.teacher.checkpoint=bad.pth work_dir=run',
    'a pretrained backbone': 'train {config} --cfg-options model.backbone.init_cfg.type=Pretrained '
                             'model.backbone.init_cfg.checkpoint=bad.pth work_dir=run',
    'doctor': 'doctor {distill} --cfg-options model.teacher.checkpoint=bad.pth',
    'export': 'export {config} bad.pth out',
    'export of a peer': 'export {config} bad.pth out --peer dml',
    'predict': 'predict bad.pth {image} --out out --config {config}',
    'predict by the config inside': 'predict bad.pth {image} --out out',
    'bench': 'bench bad.pth --config {config}',
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a module whose import leaves a trace, on the path as a script's own folder is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / 'evil.py').write_text("import os\nos.mkdir('hit')\nclass Thing: pass\n")
    yield tmp_path
    assert not (tmp_path / 'hit').exists(), 'something in the file was executed'
    assert 'evil' not in sys.modules


def call(command: str, sound) -> int:
    argv = command.format(**vars(sound)).split()
    if argv[0] in ('train', 'test'):
        argv += ['--cfg-options', f'experiment_name={os.path.basename(os.getcwd())}']
    try:
        return main(argv)
    except SystemExit as stop:
        return stop.code


def refused(command: str, message: str, sound, capfd, status: int = 2) -> str:
    """The command's one message, which names what was found."""
    given = digests(sound.folder, sound.run, sound.config.parent)
    capfd.readouterr()
    code = call(command, sound)
    said = capfd.readouterr()
    assert code == status, said.err
    assert message in said.err + said.out, said.err
    assert 'Traceback' not in said.err + said.out
    after = digests(sound.folder, sound.run, sound.config.parent)
    assert {path: after.get(path) for path in given} == given
    return said.err


@pytest.mark.parametrize('name', PROGRAMS)
def test_no_program_in_a_checkpoint_is_run(name, here, sound, capfd):
    make, found = PROGRAMS[name]
    Path('bad.pth').write_bytes(make(here / 'hit'))
    said = refused('test {config} bad.pth', 'bad.pth', sound, capfd)
    assert found in said and ('--trust-checkpoint' in said or 'cannot be read' in said)


def test_the_programs_do_harm_where_they_are_trusted(here, monkeypatch):
    for name in ('os.system', 'eval', 'an import'):
        Path('bad.pth').write_bytes(PROGRAMS[name][0](here / 'hit'))
        if zipfile.is_zipfile('bad.pth'):
            load('bad.pth', trust=True)
        else:
            pickle.loads(Path('bad.pth').read_bytes())
        (here / 'hit').rmdir()
        sys.modules.pop('evil', None)


@pytest.mark.parametrize('program', ['os.system', 'an import'])
@pytest.mark.parametrize('entrance', ENTRANCES)
def test_there_is_no_other_entrance(entrance, program, here, sound, capfd):
    make, found = PROGRAMS[program]
    Path('bad.pth').write_bytes(make(here / 'hit'))
    refused(ENTRANCES[entrance], found, sound, capfd, 1 if entrance == 'doctor' else 2)  # doctor: a finding


def test_the_config_inside_a_checkpoint_is_read_and_not_run(here, sound, capfd):
    content = dict(load(sound.student))
    content['meta'] = dict(content['meta'], cfg="import os\nos.mkdir('hit')\nmodel = dict()")
    torch.save(content, 'bad.pth')
    for verb in ('predict bad.pth {image} --out out', 'bench bad.pth', 'export auto bad.pth out'):
        refused(verb, 'holds more than plain values', sound, capfd)


# Programs of torch.export ------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def program(sound):
    """The members of a sound .pt2 file."""
    path = sound.folder.parent / 'program/student.pt2'
    path.parent.mkdir(exist_ok=True)
    assert main(['export', str(sound.config), str(sound.student), str(path)]) == 0
    with zipfile.ZipFile(path) as archive:
        return {name.partition('/')[2]: archive.read(name) for name in archive.namelist()}


def edited(member: str, change):
    """`change` of a member's parsed JSON."""
    def edit(members):
        content = json.loads(members[member])
        change(content)
        return members | {member: json.dumps(content).encode()}
    return edit


def node(**entries):
    return edited('models/model.json',
                  lambda model: model['graph_module']['graph']['nodes'][0].update(entries))


def expression(text):
    def change(model):
        value = next(iter(model['graph_module']['graph']['sym_int_values'].values()))
        value['as_expr']['expr_str'] = text
    return edited('models/model.json', change)


def a_pickled_weight(members):
    config = json.loads(members['data/weights/model_weights_config.json'])
    next(iter(config['config'].values()))['use_pickle'] = True
    return members | {'data/weights/model_weights_config.json': json.dumps(config).encode(),
                      'data/weights/weight_0': pickled(Call(os.mkdir, 'hit'))}


HOSTILE_PROGRAMS = {
    'a pickled weight': (a_pickled_weight, 'a pickle'),
    'a pickle among the inputs': (
        lambda members: members | {'data/sample_inputs/model.pt': pickled(Call(os.mkdir, 'hit'))},
        'posix.mkdir'),
    'a library': (lambda members: members | {'data/aotinductor/model/model.so': b'\x7fELF'}, 'model.so'),
    'a path that escapes': (lambda members: members | {'../../../hit': b''}, '../../../hit'),
    'an operator that is a shell': (node(target='torch.hub.os.system'), 'torch.hub.os.system'),
    'an operator that reads files': (node(target='torch.ops.aten.from_file.default'), 'from_file'),
    'an operator that is an import': (node(target='torch.hub.sys.modules.__getitem__'), 'torch.hub.sys'),
    'an extension': (node(target='#ext:evil'), '#ext:evil'),
    'an expression that is a program': (expression("__import__('os').mkdir('hit')"), '__import__'),
    'an expression that reaches for one': (expression('().__class__.__base__'), '__class__'),
    'an expression without end': (expression('9**9**9**9'), '9**9'),
    'a guard that is a program': (
        edited('models/model.json',
               lambda model: model.update(guards_code=["__import__('os').mkdir('hit')"])),
        'guards_code'),
}


@pytest.mark.parametrize('name', HOSTILE_PROGRAMS)
def test_no_foreign_program_is_run(name, program, here, sound, capfd):
    change, found = HOSTILE_PROGRAMS[name]
    with zipfile.ZipFile('bad.pt2', 'w') as archive:
        for member, content in change(dict(program)).items():
            archive.writestr(f'bad/{member}', content)
    for verb in ('predict bad.pt2 {image} --out out', 'bench bad.pt2'):
        said = refused(verb, found, sound, capfd)
        assert 'bad.pt2' in said


def test_a_sound_program_is_let_in_after_the_same_examination(program, here, sound):
    with zipfile.ZipFile('good.pt2', 'w') as archive:
        for member, content in program.items():
            archive.writestr(f'good/{member}', content)
    assert call('predict good.pt2 {image} --out out', sound) == 0
    assert json.loads(Path('out/predictions.json').read_text()) is not None


# ONNX --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('place', ['../secret.bin', '/etc/passwd', 'link.bin'])
def test_an_onnx_file_reads_no_other_file(place, here, sound, capfd):
    import onnx
    model = onnx.load(sound.onnx)
    (here / 'in').mkdir()
    (here / 'secret.bin').write_bytes(bytes(1 << 20))
    (here / 'in/link.bin').symlink_to(here / 'secret.bin')
    weight = next(each for each in model.graph.initializer if len(each.raw_data) > 64)
    weight.ClearField('raw_data')
    weight.data_location = onnx.TensorProto.EXTERNAL
    entry = weight.external_data.add()
    entry.key, entry.value = 'location', place
    Path('in/bad.onnx').write_bytes(model.SerializeToString())
    for verb in ('predict in/bad.onnx {image} --out out', 'quantize in/bad.onnx a.onnx --images {images}'):
        refused(verb, 'in/bad.onnx', sound, capfd)


# Bombs -------------------------------------------------------------------------------------------------
LAUGHS = '<!DOCTYPE a [<!ENTITY l0 "ha">' + ''.join(
    f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 11)) + ']>'
QUADRATIC = f'<!DOCTYPE a [<!ENTITY l "{"ha" * 50000}">]>'
OUTSIDE = '<!DOCTYPE a [<!ENTITY l SYSTEM "file:///etc/passwd">]>'


def overlapping() -> bytes:
    """A zip archive whose thousand members are all the same megabyte."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        archive.writestr('a/data.pkl', bytes(1 << 20))
    whole = buffer.getvalue()
    at = whole.index(b'PK\x01\x02')
    entry, end = whole[at:whole.index(b'PK\x05\x06')], whole[whole.index(b'PK\x05\x06'):]
    count = 1000
    return (whole[:at] + entry * count
            + end[:8] + struct.pack('<HHII', count, count, len(entry) * count, at) + end[20:])


def deflated() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', zipfile.ZIP_DEFLATED) as archive:
        with archive.open('a/data.pkl', 'w') as member:
            for _ in range(1024):
                member.write(bytes(1 << 20))
    return buffer.getvalue()


def storage(numbers: int) -> bytes:
    """A checkpoint that claims a tensor of so many numbers over a storage of a few bytes."""
    buffer = io.BytesIO()
    torch.save(dict(state_dict=dict(weight=torch.ones(3))), buffer)
    source, target = zipfile.ZipFile(buffer), io.BytesIO()
    with zipfile.ZipFile(target, 'w') as archive:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith('data.pkl'):
                assert b'K\x03' in content
                content = content.replace(b'K\x03', b'\x8a\x06' + numbers.to_bytes(6, 'little'))
            archive.writestr(name, content)
    return target.getvalue()


def annotated(head: str):
    """data/: the sound set, one annotation of which begins like this."""
    def make(here, sound):
        shutil.copytree(sound.data, here / 'data')
        path = here / 'data/VOC2007/Annotations/000000.xml'
        text = path.read_text().replace('<name>disc</name>', '<name>&l;&l9;disc</name>', 1)
        assert '&l;' in text
        path.write_text(head + text)
    return make


def pictured(content: bytes):
    def make(here, sound):
        shutil.copytree(sound.data, here / 'data')
        (here / 'data/VOC2007/JPEGImages/000000.jpg').write_bytes(content)
    return make


def coco(content: bytes):
    """data/: a set in COCO form with this annotation file."""
    def make(here, sound):
        shutil.copytree(sound.images, here / 'data/images')
        (here / 'data/annotations').mkdir()
        (here / 'data/annotations/train.json').write_bytes(content)
    return make


def written(name: str, content):
    return lambda here, sound: (here / name).write_bytes(content() if callable(content) else content)


@functools.cache
def gigapixels() -> bytes:
    return png(30000, 30000, 30000, grey=True)


def jpeg(width: int, height: int) -> bytes:
    """The headers of a JPEG that claims any size."""
    import cv2
    import numpy as np
    content = cv2.imencode('.jpg', np.zeros((16, 16, 3), np.uint8))[1].tobytes()
    at = content.index(b'\xff\xc0') + 5
    return content[:at] + struct.pack('>HH', height, width) + content[at + 4:]


TEST = 'test {config} bad.pth'
FIND = 'predict {student} --out out '
SET = 'train_dataloader.dataset.'
TRAIN = f'train {{config}} --cfg-options work_dir=run {SET}data_root=data/ {SET}type=VOCFolder'
CHECK = 'data check data'

# name, the file, the command, part of the message, exit status
BOMBS = [
    ('members that overlap', written('bad.pth', overlapping), TEST, 'parts of it overlap', 2),
    ('a gigabyte of zeros', written('bad.pth', deflated), TEST, 'compressed archive', 2),
    ('numbers that are not there', written('bad.pth', lambda: storage(1 << 40)), TEST, 'bad.pth', 2),
    ('bytes that are not there', written('bad.pth', b'\x80\x04\x8e' + struct.pack('<Q', 1 << 46) + b'x.'),
     TEST, 'bad.pth', 2),
    ('bytes asked for', written('bad.pth', lambda: pickled(Call(bytearray, 1 << 46))), TEST, 'bad.pth', 2),
    ('a deep pickle', written('bad.pth', b'\x80\x02' + b']' * 100000 + b'a' * 99999 + b'.'), TEST,
     'bad.pth', 2),
    ('a long head', written('bad.safetensors', struct.pack('<Q', 1 << 60) + b'{}'),
     'test {config} bad.safetensors', 'bad.safetensors', 2),
    ('a head of brackets', written('bad.safetensors', struct.pack('<Q', 1 << 20) + b'[' * (1 << 20)),
     'test {config} bad.safetensors', 'bad.safetensors', 2),
    ('a path out of a checkpoint', lambda here, sound: zipped(here / 'bad.pth', '../../hit/data.pkl'), TEST,
     'lies outside', 2),
    ('an absolute path in a checkpoint', lambda here, sound: zipped(here / 'bad.pth', '/tmp/hit/data.pkl'),
     TEST, 'lies outside', 2),
    ('entities checked', annotated(LAUGHS), CHECK, 'DOCTYPE', 1),
    ('one long entity checked', annotated(QUADRATIC), CHECK, 'DOCTYPE', 1),
    ('an entity from outside checked', annotated(OUTSIDE), CHECK, 'DOCTYPE', 1),
    ('entities in training', annotated(LAUGHS), TRAIN, 'xml_doctype 1', 0),
    ('an entity from outside in training', annotated(OUTSIDE), TRAIN, 'xml_doctype 1', 0),
    ('a picture that claims gigapixels, found in', written('bad.png', png(60000, 60000)), FIND + 'bad.png',
     'too many', 1),
    ('a picture that has them, found in', written('bad.png', gigapixels), FIND + 'bad.png', 'too many', 1),
    ('a JPEG that claims them, found in', written('bad.jpg', lambda: jpeg(65000, 65000)), FIND + 'bad.jpg',
     'too many', 1),
    ('a picture that has them, checked', lambda here, sound: pictured(gigapixels())(here, sound), CHECK,
     'image_huge', 1),
    ('a picture that has them, trained on', lambda here, sound: pictured(gigapixels())(here, sound),
     TRAIN + f' {SET}pipeline.0.type=RobustLoadImage',
     '900000000 pixels) exceeds', 0),
    ('a picture that has them, quantised with', lambda here, sound: pictured(gigapixels())(here, sound),
     'quantize {onnx} a.onnx --images data/VOC2007/JPEGImages/000000.jpg', 'none of the images can be read',
     2),
    ('brackets in COCO form', coco(b'[' * 10 ** 6), CHECK, 'recursion', 1),
    ('a number in COCO form', coco(b'{"images": [' + b'9' * 10 ** 6 + b']}'), CHECK, 'train.json', 1),
]


def zipped(path: Path, name: str) -> None:
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(name, pickle.dumps({}))


MEASURED = '''
import json, os, sys
import hgd_det.registered, hgd_det.cli.main, hgd_det.cli.train, mmdet.engine, mmdet.visualization
from hgd_det.cli.main import main
def peak():
    return int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]) / 1024
for line in sys.stdin:
    folder, argv = json.loads(line)
    os.chdir(folder)
    open('/proc/self/clear_refs', 'w').write('5')
    before = peak()
    try:
        status = main(argv)
    except SystemExit as stop:
        status = stop.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = -1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    print('measured', json.dumps([status, peak() - before]), file=sys.stderr, flush=True)
'''


@pytest.fixture(scope='module')
def measured(sound):
    """Run a command in a process that has imported everything: status, what it said, megabytes it grew by."""
    process = subprocess.Popen(
        [sys.executable, '-c', MEASURED], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env=os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'))

    def run(folder: Path, argv: list[str]):
        process.stdin.write(json.dumps([str(folder), argv]) + '\n')
        process.stdin.flush()
        said = []
        for line in process.stdout:
            if line.startswith('measured '):
                return *json.loads(line[9:]), ''.join(said)
            said.append(line)
        raise AssertionError(''.join(said)[-2000:])

    # what the first call alone takes
    assert run(sound.folder, ['test', str(sound.config), str(sound.student), '--cfg-options',
                              'experiment_name=first'])[0] == 0
    yield run
    process.stdin.close()
    process.wait(60)


@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason="needs Linux's account of memory")
@pytest.mark.parametrize('make, command, message, status',
                         [pytest.param(*case[1:], id=case[0]) for case in BOMBS])
def test_a_bomb_is_named_and_takes_little_memory(make, command, message, status, here, sound, measured):
    make(here, sound)
    argv = command.format(**vars(sound)).split()
    if argv[0] in ('train', 'test'):
        argv += ['--cfg-options', f'experiment_name={here.name}']
    code, megabytes, said = measured(here, argv)
    assert code == status, said
    assert message in said, said
    assert 'Traceback' not in said
    assert megabytes < 300
