"""What a user can get wrong, and what the command line answers: one message, no traceback, and every file
that was given is as it was.
"""
import builtins
import json
import pickle
import shlex
import shutil
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


# What is made in the working folder of a case: functions of (folder, sound) ----------------------------
def nothing(here, sound):
    pass


def file(name, content=''):
    def make(here, sound):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return make


def config(lines, base='distill'):
    """bad.py: a sound config with something added."""
    def make(here, sound):
        (here / 'bad.py').write_text(f'_base_ = {str(getattr(sound, base))!r}\n{lines}\n')
    return make


def model(entries):
    return config(f'model = dict({entries})')


def term(options):
    return model(f'terms=dict(hgd=dict({options}))')


def teacher(options):
    return model(f'teacher=dict({options})')


def student(section):
    return config(section, 'config')


def other_teacher(old, new):
    """t.py: the teacher's config with another value."""
    def make(here, sound):
        text = sound.teacher.read_text()
        assert old in text
        (here / 't.py').write_text(text.replace(old, new))
    return make


def changed(which, change, name='bad.pth'):
    """A sound file with its bytes changed."""
    return lambda here, sound: (here / name).write_bytes(change(getattr(sound, which).read_bytes()))


def saved(change, name='bad.pth', which='student'):
    """A sound checkpoint with its content changed."""
    def make(here, sound):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(change(dict(load(getattr(sound, which)))), here / name)
    return make


def data(change):
    """data/: the sound set with something changed; `change` is given its VOC folder."""
    def make(here, sound):
        shutil.copytree(sound.data, here / 'data')
        change(here / 'data/VOC2007')
    return make


def listed(content):
    return data(lambda root: (root / 'ImageSets/Main/trainval.txt').write_bytes(content))


def annotated(old, new):
    def change(root):
        path = root / 'Annotations/000000.xml'
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
    return data(change)


def pictured(content, name='000000'):
    """An image with another content, or with a change of its own."""
    def change(root):
        path = root / f'JPEGImages/{name}.jpg'
        path.write_bytes(content(path.read_bytes()) if callable(content) else content)
    return data(change)


def emptied(folder):
    return data(lambda root: [path.unlink() for path in (root / folder).iterdir()])


def coco(content):
    """data/: a set in COCO form, whose annotation file is this text, or a sound one with a change."""
    def make(here, sound):
        whole = dict(images=[dict(id=1, file_name='000000.jpg', width=85, height=92)],
                     annotations=[dict(id=1, image_id=1, category_id=1, bbox=[2, 2, 20, 20], area=400,
                                       iscrowd=0)],
                     categories=[dict(id=1, name='disc'), dict(id=2, name='square'), dict(id=3, name='star')])
        (here / 'data/annotations').mkdir(parents=True)
        shutil.copytree(sound.images, here / 'data/images')
        (here / 'data/annotations/train.json').write_text(
            content if isinstance(content, str) else json.dumps(whole | content))
    return make


def cut(share):
    return lambda content: content[:int(share * len(content))]


def flipped(content):
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1:]


def recompressed(here, sound):
    with zipfile.ZipFile(sound.student) as old, \
            zipfile.ZipFile(here / 'bad.pth', 'w', zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))


def a_program(here, sound):
    torch.jit.script(torch.nn.ReLU()).save(str(here / 'bad.pth'))


def a_call(here, sound):
    class Call:
        def __reduce__(self):
            return builtins.exec, (f'open({str(here / "hit")!r}, "w")',)
    (here / 'bad.pth').write_bytes(pickle.dumps(Call()))


def a_list(here, sound):
    torch.save([1], here / 'bad.pth')


TRAIN = 'train {config} --cfg-options '
SET = 'train_dataloader.dataset.'
MMDET = f'{TRAIN}{SET}data_root=data/'
VOC = f'{MMDET} {SET}type=VOCFolder'
COCO = (f'{MMDET} {SET}type=CocoFolder {SET}ann_file=annotations/train.json '
        f'{SET}data_prefix._delete_=True {SET}data_prefix.img=images/')
TEST = 'test {config} {student} --cfg-options test_dataloader.dataset.data_root=data/'
TEACHER = 'train {distill} --cfg-options model.teacher.'
FIND = 'predict {student} --out out '
BYTES = bytes(range(256))

# name, what is made, the command, part of the message, exit status: 2 for what was given, 1 for what the run
# found or the system refused
CASES = [
    # command lines
    ('no verb', nothing, '', 'verbs:', 2),
    ('a misspelt verb', nothing, 'trian', 'did you mean train?', 2),
    ('an unknown option', nothing, 'train {config} --bogus', 'unrecognized arguments: --bogus', 2),
    ('no config', nothing, 'train', 'required: CONFIG', 2),
    ('no checkpoint', nothing, 'test {config}', 'CHECKPOINT', 2),
    ('a change without =', nothing, TRAIN + 'nonsense', "'nonsense' is not of the form key=value", 2),
    ('a change below a number', nothing, TRAIN + 'input_size.x=1', 'does not fit the config', 2),
    ('a change of the config inside', nothing, 'export auto {student} out --cfg-options input_size.x=1',
     'does not fit the config', 2),
    ('a misspelt term to explain', nothing, 'methods HDG', 'did you mean HGD?', 2),
    ('no images to verify with', nothing, 'export {config} {student} out --verify test --limit 0',
     '--limit: 0: give 1 or more', 2),
    ('a doctor without a config', nothing, 'doctor nope.py', "config 'nope.py' does not exist", 2),
    ('a doctor who looks at nothing', nothing, 'doctor {distill} --images 0', '--images 0', 2),
    ('a cost of nothing', nothing, 'cost {distill} --repeat 0', '--repeat 0: give 1 or more', 2),
    ('a cost of what is missing', nothing, 'cost nope.py', "config 'nope.py' does not exist", 2),
    ('a report of what is missing', nothing, 'report nope', 'nope does not exist', 2),
    ('a report of no run', file('nope/notes.txt'), 'report nope', 'nope holds no run', 2),
    ('features of a missing image', nothing, 'features {config} {student} nope.jpg --out out',
     'nope.jpg does not exist', 2),
    ('features of text', file('bad.jpg', 'hello'), 'features {config} {student} bad.jpg --out out',
     'not an image', 1),
    ('a table that the paper lacks', nothing, 'reproduce 7', "table '7'; there are 1, 2", 2),
    ('a table that the scale lacks', nothing, 'reproduce 5 --scale shapes', 'no configs; --scale voc', 2),
    ('an unknown scale', nothing, 'reproduce 4 --scale moon', "invalid choice: 'moon'", 2),
    ('no seeds', nothing, 'reproduce 4 --seeds 0 --dry-run', '--seeds 0: give how many', 2),
    ('a demo without steps', nothing, 'demo --steps 0', '--steps: 0: give 1 or more', 2),
    ('a folder of another demo', file('work/demo.json', '{"seed": 7}'), 'demo --work-dir work',
     'holds a demo with other settings', 2),
    ('a folder of a damaged demo', file('work/demo.json', '{'), 'demo --work-dir work', 'cannot be read', 2),
    ('half a list', nothing, TRAIN + 'train_cfg.max_iters=[1', "max_iters='[1'; give a whole number", 2),
    ('a seed that is a word', nothing, 'train {config} --seed one', "invalid int value: 'one'", 2),
    ('a negative seed', nothing, 'train {config} --seed -1', '--seed: -1: give 0 or more', 2),
    ('an unknown launcher', nothing, 'train {config} --launcher slrum', "invalid choice: 'slrum'", 2),
    ('torchrun that is not there', nothing, 'train {config} --launcher pytorch', 'needs torchrun', 2),
    ('slurm that is not there', nothing, 'train {config} --launcher slurm', 'needs srun', 2),
    ('no batch size to scale from', nothing, 'train {config} --auto-scale-lr', 'base_batch_size=N', 2),
    ('a work folder that is a file', nothing, 'train {config} --work-dir {student}', 'is a file; give a', 2),
    ('a negative batch', nothing, 'test {config} {student} --batch-size -3', '-3: give 1 or more', 2),
    ('pictures into a file', nothing, 'test {config} {student} --show-dir {image}', 'is a file; give a', 2),
    ('JSON over a checkpoint', nothing, 'test {config} {student} --json {student}', 'not be overwritten', 2),
    ('JSON into a folder', nothing, 'inspect {config} --json {folder}', 'is a folder; give a file', 2),
    ('an unknown format', nothing, 'export {config} {student} out --format onxx', "choice: 'onxx'", 2),
    ('two formats for a file', nothing, 'export {config} {student} a.onnx --format pth', 'give a folder', 2),
    ('an export over the checkpoint', nothing, 'export {config} {student} {student}', 'would overwrite', 2),
    ('an export over the config', nothing, 'export {teacher} {teacher_weights} {folder}/teacher.onnx',
     'teacher.py, which this command reads', 2),
    ('an export below a file', nothing, 'export {config} {student} {image}/out', '/out: Not a directory', 1),
    ('nothing to verify on', nothing, 'export {config} {student} out --verify nope', 'nope does not', 2),
    ('an impossible score', nothing, FIND + '{image} --score 2', 'between 0 and 1', 2),
    ('negative threads', nothing, FIND + '{image} --threads -1', '-1: give 1 or more', 2),
    ('found things into a file', nothing, 'predict {student} {image} --out {image}', 'is a file; give a', 2),
    ('pictures over the originals', nothing, 'predict {student} {images} --out {images}', 'overwrite', 2),
    ('a benchmark of threads', nothing, 'bench {student} --threads -1', '-1: give 1 or more', 2),
    ('a benchmark of nothing', nothing, 'bench {student} --batch 0', '0: give 1 or more', 2),
    ('a benchmark of no size', nothing, 'bench {student} --size -1 96', '-1: give 1 or more', 2),
    ('a model against itself', nothing, 'bench {student} {student}', 'given twice', 2),
    ('configs for other models', nothing, 'bench {student} --config {config} {config}', '2 given for 1', 2),
    ('mAP on no config', nothing, 'bench {student} --map nope.py', "'nope.py' does not exist", 2),
    ('a misspelt method', nothing, 'methods hdg', 'did you mean HGD?', 2),
    ('no data verb', nothing, 'data', 'required: VERB', 2),
    ('a misspelt data verb', nothing, 'data shape', "invalid choice: 'shape'", 2),
    ('shapes that are too small', nothing, 'data shapes out --size 5', 'must lie in 48..1024', 2),
    ('shapes without images', nothing, 'data shapes out --train 0', 'give a number in 1..', 2),
    ('shapes over other things', nothing, 'data shapes {folder}', 'is not a shapes set', 2),
    ('shapes below a file', nothing, 'data shapes {image}/x --train 1 --test 1', 'File exists', 1),
    ('no workers', nothing, 'data check {data} --workers 0', 'give ', 2),
    ('an unknown part of VOC', nothing, 'data voc out --only trainval2008', 'no such part', 2),
    ('VOC from nowhere', nothing, 'data voc out --from nope', '--from nope: does not exist', 2),
    ('VOC from elsewhere', nothing, 'data voc out --from {folder}', 'neither one of', 2),
    ('another archive', file('val2017.zip', 'PK'), 'data coco out --from val2017.zip', 'its md5 is', 2),
    ('a broken archive', file('val2017.zip', 'PK'), 'data coco out --from val2017.zip --no-checksum',
     'cannot be unpacked', 2),
    ('no set to check', nothing, 'data check nope', 'nope does not exist', 2),
    ('a folder without a set', nothing, 'data check .', 'holds no data set', 2),
    ('cleaned lists over other things', nothing, 'data check {data} --write-clean {folder}', 'not empty', 2),
    ('cleaned lists into a file', nothing, 'data check {data} --write-clean {image}', 'or a file', 2),
    # configs
    ('a misspelt config', nothing, 'train configs/hgd/ssd_half_vox.py',
     'near names: configs/hgd/ssd_half_voc.py', 2),
    ('a misspelt pair', nothing, 'train shapse --method hgd', 'near names: shapes', 2),
    ('a misspelt method of a pair', nothing, 'train shapes --method hgdd', 'near names: hgd', 2),
    ('a method for a detector', nothing, 'train shapes/student --method hgd', 'describes no pair', 2),
    ('a pair without a method', nothing, 'train shapes', 'give a --method', 2),
    ('two methods with one term', nothing, 'train shapes --method chen+hint', "have a term 'hint'", 2),
    ('a folder for a config', nothing, 'train {folder}', 'is a folder; give a file', 2),
    ('a checkpoint for a config', nothing, 'train {student}', 'is no config', 2),
    ('a syntax error', file('bad.py', 'a = 1\nmodel = dict(\n'), 'train bad.py', "line 2: '(' was never", 2),
    ('a config that raises', file('bad.py', '1 / 0'), 'inspect bad.py', 'ZeroDivisionError', 2),
    ('a config that exits', file('bad.py', 'raise SystemExit(0)'), 'train bad.py', 'SystemExit', 2),
    ('a config of bytes', file('bad.py', BYTES), 'data check bad.py', 'UnicodeDecodeError', 2),
    ('broken JSON', file('bad.json', '{"a": '), 'train bad.json', 'JSONDecodeError', 2),
    ('an empty config', file('bad.py'), 'train bad.py', 'it has no train_dataloader', 2),
    ('an empty config to inspect', file('bad.py'), 'inspect bad.py', 'bad.py has no model=dict', 2),
    ('an empty config to export', file('bad.py'), 'export bad.py {student} out', 'has no model=dict', 2),
    ('a misspelt base', file('bad.py', "_base_ = 'bade.py'"), 'train bad.py', 'near names: bad.py', 2),
    ('a misspelt name of the base', student('x = {{_base_.modl}}'), 'train bad.py', "asks for 'modl'", 2),
    ('an import that fails', student("custom_imports = dict(imports=['no_such'])"), 'train bad.py',
     'no_such', 2),
    ('an unknown key at the top', config('optim_wraper = dict()'), 'train bad.py', "mean 'optim_wrapper'", 2),
    ('an unknown key of the model', model('teachr=dict()'), 'inspect bad.py', 'did you mean teacher', 2),
    ('an unknown key of a part', student('model = dict(backbone=dict(widht=1))'), 'train bad.py',
     "SlimSSDVGG is wrong: it got an unexpected keyword argument 'widht'; did you mean width", 2),
    ('an unknown key of a term', term("distanse='l2'"), 'inspect bad.py', "did you mean 'distance'", 2),
    ('an unknown key of the schedule', term('warm_up=3'), 'inspect bad.py', "did you mean 'warmup'", 2),
    ('an unknown key of the teacher', teacher("checkpont='x'"), 'train bad.py', "mean 'checkpoint'", 2),
    ('a misspelt term', term("type='HDG'"), 'train bad.py', "did you mean 'HGD'", 2),
    ('a term in lower case', term("type='hgd'"), 'inspect bad.py', "did you mean 'HGD'", 2),
    ('a term without type', model('terms=dict(x=dict(weight=1.0))'), 'inspect bad.py', "dict(type='HGD'", 2),
    ('a list of terms', model("terms=['HGD']"), 'inspect bad.py', 'write dict(NAME=dict(type=', 2),
    ('a list of terms to export', model("terms=['HGD']"), 'export bad.py nope.pth out', 'nope.pth does', 2),
    ('a name with a hyphen', model("terms={'a-b': dict(type='HGD')}"), 'inspect bad.py', 'a plain word', 2),
    ('a weight in words', term("weight='x'"), 'inspect bad.py', "weight='x'; give a number or 'auto'", 2),
    ('a weight without end', term("weight=float('inf')"), 'inspect bad.py', 'or one without end', 2),
    ('a negative warm-up', term('warmup=-1'), 'inspect bad.py', "term 'hgd': warmup=-1", 2),
    ('a warm-up in words', term("warmup='1'"), 'inspect bad.py', "warmup='1'; give a number", 2),
    ('a warm-up of one and a half', term('warmup=1.5'), 'inspect bad.py', 'a float below 1 is a fraction', 2),
    ('a warm-up beyond the end', term('warmup=9'), 'train bad.py', 'training has only 4', 2),
    ('an average over nothing', term('average=0'), 'inspect bad.py', 'at least one iteration', 2),
    ('a term that never lets detect', term('detection=0'), 'train bad.py', 'never learn to detect', 2),
    ('a number in words', term("gamma='a'"), 'inspect bad.py', "HGD: gamma='a'; give a number", 2),
    ('a yes in words', term("detach_weights='no'"), 'inspect bad.py', "'no'; give True or False", 2),
    ('a number for a list', term('sizes=12'), 'inspect bad.py', 'sizes=12; give a list', 2),
    ('a stage that is not there', term('sizes=[13]'), 'inspect bad.py', 'stages [13] do not exist', 2),
    ('an unknown choice', term("distance='manhattan'"), 'inspect bad.py', "choose one of 'cosine', 'l2'", 2),
    ('a misspelt tap', term("taps=[dict(student='nek', teacher='neck[0]')]"), 'inspect bad.py', "'nek'", 2),
    ('a temperature of 0', model('terms=dict(kd=dict(temperature=0))'), 'inspect bad.py', 'above 0', 2),
    ('an unknown region', model("terms=dict(kd=dict(region='foo'))"), 'inspect bad.py', "region='foo'", 2),
    ('a batch in words', config("train_dataloader = dict(batch_size='a')"), 'train bad.py',
     "train_dataloader.batch_size='a'; give a whole number from 1 up", 2),
    ('workers that stay but are none', nothing, TRAIN + 'train_dataloader.persistent_workers=True',
     'DataLoader cannot be made from its config', 2),
    ('an unknown key of a loader', nothing, TRAIN + 'train_dataloader.batch_sze=2', 'mean batch_size', 2),
    ('validation every 0 steps', config('train_cfg = dict(val_interval=0)'), 'train bad.py', 'val_int', 2),
    ('a learning rate in words', config("optim_wrapper = dict(optimizer=dict(lr='fast'))"), 'train bad.py',
     "AdamW cannot be made from its config, lr='fast'", 2),
    ('a misspelt optimizer', config("optim_wrapper = dict(optimizer=dict(type='AdmW'))"), 'train bad.py',
     'near names: AdamW', 2),
    ('a misspelt hook', config("custom_hooks = [dict(type='DistilHook')]"), 'train bad.py', 'DistillHook', 2),
    ('a hook in words', config("custom_hooks = 'DistillHook'"), 'train bad.py', '[dict(type=...), ...]', 2),
    ('a misspelt data set', nothing, f'{TRAIN}{SET}type=VOCFoldr', 'near names: VOCFolder', 2),
    ('a misspelt step', config("train_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImage')]))"),
     'train bad.py', 'near names: RobustLoadImage', 2),
    ('no steps', config('train_dataloader = dict(dataset=dict(pipeline=[]))'), 'train bad.py', 'PackDet', 2),
    ('a size in words', model("input_size='big'"), 'inspect bad.py', "input_size='big'; give the side", 2),
    ('an impossible depth', student('model = dict(backbone=dict(depth=17))'), 'train bad.py',
     'depth is 17', 2),
    ('channels that do not fit', student('model = dict(neck=dict(in_channels=[1, 2]))'), 'inspect bad.py',
     'SSDNeck cannot be made from its config, in_channels=[1, 2]', 2),
    ('classes that do not fit', student('model = dict(bbox_head=dict(num_classes=2))'), 'train bad.py',
     'num_classes=2, but the training data has 3 classes', 2),
    ('nothing to judge by', student('test_evaluator = None'), 'test bad.py {student}',
     'no test_evaluator', 2),
    # teachers
    ('no teacher', model('teacher=None'), 'train bad.py', 'model.teacher is missing', 2),
    ('a teacher in words', model("teacher='t.py'"), 'inspect bad.py', 'write dict(model=..., checkpoint', 2),
    ('a teacher without config', nothing, TEACHER + 'model=nope.py', "'nope.py' does not exist", 2),
    ('a teacher with a syntax error', file('t.py', 'a = ('), TEACHER + 'model=t.py',
     'config t.py cannot', 2),
    ('a teacher without model', file('t.py', 'a = 1'), TEACHER + 'model=t.py', 'has no model', 2),
    ('a teacher without weights', teacher('checkpoint=None'), 'train bad.py', 'nothing to learn from it', 2),
    ('a teacher whose weights are gone', nothing, TEACHER + 'checkpoint=no.pth',
     'train the teacher first', 2),
    ('a teacher cut off', changed('teacher_weights', cut(0.9)), TEACHER + 'checkpoint=bad.pth',
     'truncated', 2),
    ('the weights of another', nothing, TEACHER + 'checkpoint={student}', 'does not fit the model', 2),
    ('another file than meant', nothing, TEACHER + 'sha256=abc', 'this is another file', 2),
    ('a teacher of other classes', saved(lambda content: content | dict(meta=dict(dataset_meta=dict(
        classes=('a', 'b', 'c')))), which='teacher_weights'), TEACHER + 'checkpoint=bad.pth',
     "0: teacher 'a', student 'disc'", 2),
    ('a teacher of more classes', other_teacher("'num_classes': 3", "'num_classes': 5"),
     TEACHER + 'model=t.py',
     'the student knows 3 classes, the teacher 5', 2),
    ('a teacher of other anchors', other_teacher("'min_sizes': [12,", "'min_sizes': [10,"),
     TEACHER + 'model=t.py', 'the anchors differ', 2),
    # data
    ('no list', nothing, VOC, 'cannot read the list', 2),
    ("no list for mmdet's reader", nothing, MMDET, 'trainval.txt does not exist', 2),
    ('an empty list', listed(b''), VOC, 'names no image', 2),
    ("an empty list for mmdet's reader", listed(b''), MMDET, '`hgd-det data check CONFIG` reads', 2),
    ('an empty list to check', listed(b''), 'data check data', 'split_empty', 1),
    ('a list of bytes', listed(BYTES), VOC, 'cannot read the list', 2),
    ('a list that leaves its folder', listed(b'../../x\n'), VOC, 'names no image', 2),
    ('no annotation', emptied('Annotations'), VOC, 'annotation_missing', 2),
    ('no image', emptied('JPEGImages'), VOC, 'image_missing', 2),
    ('other classes', nothing, f'{TRAIN}{SET}type=VOCFolder {SET}metainfo.classes=(a,b,c)',
     "no object of the classes a, b, c, but others (000000 'disc'", 2),
    ("broken XML for mmdet's reader", annotated('</size>', ''), MMDET, 'mismatched tag', 2),
    ('broken XML', annotated('</size>', ''), 'data check data', 'xml_unparsable', 1),
    ('XML with entities', annotated('<annotation>', '<!DOCTYPE a [<!ENTITY b "c">]><annotation>'),
     'data check data', 'xml_doctype', 1),
    ('a coordinate in words', annotated('<xmin>', '<xmin>a'), 'data check data', 'coordinate_bad', 1),
    ('a box outside', annotated('<xmax>', '<xmax>9'), 'data check data', 'box_outside', 1),
    ('an unknown class', annotated('<name>disc', '<name>Disc'),
     'data check data --classes disc,square,star', "meant 'disc'", 1),
    ('an image cut off', pictured(cut(0.8)), 'data check data', 'image_truncated', 1),
    ('an image that is text', pictured(b'hello'), 'data check data', 'image_undecodable', 1),
    ('an image that claims to be huge', pictured(png(60000, 60000)), 'data check data', 'image_huge', 1),
    ('an empty image in training', pictured(b''), MMDET, '000000.jpg cannot be used', 1),
    ('a huge image in training', pictured(png(60000, 60000)), MMDET, '000000.jpg cannot be used', 1),
    ('an empty image in testing', pictured(b'', '000009'), TEST, '000009.jpg cannot be used', 1),
    ('broken JSON of COCO', coco('{"images": ['), COCO, 'cannot read data/annotations/train.json', 2),
    ('a list for COCO', coco('[]'), 'data check data', 'json_keys', 1),
    ('JSON nested without end', coco('[' * 100000), 'data check data', 'json_broken', 1),
    ('images without id', coco(dict(images=[dict(file_name='a')])), COCO, "an entry has no 'id'", 2),
    ('images without size', coco(dict(images=[dict(id=1, file_name='a')])), COCO, "has no 'width'", 2),
    ('annotations of no image', coco(dict(images=[])), 'data check data', 'annotation_orphan', 1),
    ('classes that COCO lacks', coco(dict(categories=[dict(id=1, name='disc')])), COCO, 'knows 1 of them', 2),
    # checkpoints
    ('a missing checkpoint', nothing, 'test {config} nope.pth', 'nope.pth does not exist', 2),
    ('a folder of checkpoints', nothing, 'test {config} {run}', 'is a folder; give the .pth', 2),
    ('an empty checkpoint', file('bad.pth'), 'test {config} bad.pth', 'is empty (0 bytes)', 2),
    ('a text', file('bad.pth', 'hello'), 'export {config} bad.pth out', 'not a checkpoint of PyTorch', 2),
    ('a checkpoint cut off', changed('student', cut(0.9)), 'predict bad.pth {image} --out out',
     'truncated', 2),
    ('a checkpoint cut off to resume', changed('student', cut(0.9)), 'train {config} --resume bad.pth',
     'truncated or damaged', 2),
    ('a flipped byte', changed('student', flipped), 'bench bad.pth', 'wrong checksum in its part', 2),
    ('another model', saved(lambda content: dict(state_dict={'a': torch.ones(1)})), 'test {config} bad.pth',
     'does not fit the model', 2),
    ('another model to resume', saved(lambda content: content | dict(state_dict={'a': torch.ones(1)})),
     'train {config} --resume bad.pth', 'of another model than the config', 2),
    ('weights alone to resume', saved(lambda content: dict(state_dict=content['state_dict'])),
     'train {config} --resume bad.pth', 'holds weights only', 2),
    ('weights alone in the folder', saved(lambda content: dict(state_dict=content['state_dict']),
     'work_dirs/tiny/iter_4.pth'), 'train {config} --resume', 'none of the checkpoints in', 2),
    ('half a state to resume', saved(lambda content: content | dict(meta={}, message_hub=None)),
     'train {config} --resume bad.pth', 'it has no meta.epoch, meta.iter, message_hub', 2),
    ('nothing to begin from', nothing, TRAIN + 'load_from=nope.pth', 'nope.pth does not exist', 2),
    ('a TorchScript program', a_program, 'test {config} bad.pth', 'is a TorchScript program', 2),
    ('a compressed archive', recompressed, 'test {config} bad.pth', 'is a compressed archive', 2),
    ('a pickled call', a_call, 'test {config} bad.pth', 'contains builtins.exec', 2),
    ('a pickled list', a_list, 'test {config} bad.pth', 'holds a list, not a dict of weights', 2),
    ('no weights', saved(lambda content: {}), 'test {config} bad.pth', 'holds no weights', 2),
    ('no config inside', saved(lambda content: content | dict(meta='x')), 'export auto bad.pth out',
     'give it: --config CONFIG', 2),
    ('a program for a config inside', saved(lambda content: content | dict(meta=dict(cfg='import os'))),
     'export auto bad.pth out', 'holds more than plain values', 2),
    ('text named safetensors', file('bad.safetensors', 'hello'), 'test {config} bad.safetensors',
     'truncated or damaged', 2),
    # models and images
    ('a missing model', nothing, 'predict nope.pth {image} --out out', 'model nope.pth does not exist', 2),
    ('a model of no known kind', file('bad.txt'), 'predict bad.txt {image} --out out', 'a file ends in', 2),
    ('text named ONNX', file('bad.onnx', 'hello'), 'bench bad.onnx', 'cannot be run by onnxruntime', 2),
    ('an ONNX file cut off', changed('onnx', cut(0.5), 'bad.onnx'),
     'quantize bad.onnx a.onnx --images {images}',
     'cannot be run by onnxruntime', 2),
    ('text named pt2', file('bad.pt2', 'hello'), 'predict bad.pt2 {image} --out out', 'not a program', 2),
    ('a checkpoint to quantise', nothing, 'quantize {student} a.onnx --images {images}',
     'not an ONNX file', 2),
    ('a model quantised onto itself', nothing, 'quantize {onnx} {onnx} --images {image}',
     'would overwrite', 2),
    ('no images to quantise with', file('bad/a.jpg', 'hello'), 'quantize {onnx} a.onnx --images bad',
     'none of the images can be read', 2),
    ('none of the images to quantise with', nothing, 'quantize {onnx} a.onnx --images {images} --limit 0',
     'a limit of 0 images', 2),
    ('a missing image', nothing, FIND + 'nope.jpg', 'nope.jpg does not exist', 2),
    ('a folder without images', nothing, FIND + '.', 'holds no image', 2),
    ('text named jpg', file('bad.jpg', 'hello'), FIND + 'bad.jpg', 'bad.jpg: not an image', 1),
    ('an empty picture', file('bad.jpg'), FIND + 'bad.jpg', 'bad.jpg: empty (0 bytes)', 1),
    ('a picture cut off', changed('image', cut(0.5), 'bad.jpg'), FIND + 'bad.jpg', 'damaged or cut off', 1),
    ('a picture that claims to be huge', file('bad.png', png(60000, 60000)), FIND + 'bad.png', 'too many', 1),
    ('text named mp4', file('bad.mp4', 'hello'), FIND + 'bad.mp4', 'bad.mp4: not a video', 1),
]


@pytest.mark.parametrize('make, command, message, status',
                         [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_bad_input_is_answered_with_one_message_and_left_as_it_was(
        make, command, message, status, sound, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    make(tmp_path, sound)
    given = sound.folder, sound.run, sound.config.parent, tmp_path
    before = digests(*given)
    argv = shlex.split(command.format(**vars(sound)))
    if argv[:1] in (['train'], ['test']):  # mmengine keeps together what runs of one name and second log
        argv += ['--cfg-options', f'experiment_name={tmp_path.name}']
    try:
        code = main(argv)
    except SystemExit as stop:  # argparse's
        code = stop.code
    said = capfd.readouterr()
    assert code == status, said.err
    assert message in said.err + said.out
    assert 'Traceback' not in said.err + said.out
    after = digests(*given)
    assert {path: after.get(path) for path in before} == before
    assert not (tmp_path / 'hit').exists()


def test_the_table_is_long_enough_and_names_each_case_once():
    names = [case[0] for case in CASES]
    assert len(names) == len(set(names)) >= 60


@pytest.mark.parametrize('tool, arguments, message, status', [
    ('train', ['bad.py'], 'error: config bad.py cannot be read: ZeroDivisionError: division by zero\n', 2),
    ('data', ['check', 'nope'], 'error: nope does not exist', 2),
    ('export', ['auto', 'nope.pth', 'out', '--format', 'onxx'], "invalid choice: 'onxx'", 2),
])
def test_the_tools_answer_likewise(tool, arguments, message, status, tmp_path):
    (tmp_path / 'bad.py').write_text('1 / 0')
    done = subprocess.run([sys.executable, ROOT / f'tools/{tool}.py', *arguments], cwd=tmp_path,
                          capture_output=True, text=True)
    assert (done.returncode, 'Traceback' in done.stderr) == (status, False)
    assert message in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['bad.py']
