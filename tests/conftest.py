"""Every test sees MMDetection as `import hgd_det` makes it work. What tests of whole runs share is a data
set of a dozen drawings and a detector of a few thousand weights, trained for four steps.
"""
import itertools
import logging
import os
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # small tensors: threads only get in each other's way

import numpy as np  # noqa: E402
import pytest  # noqa: E402

import hgd_det  # noqa: E402,F401

# mmengine's loggers outlive the test whose captured stream they write to
logging.raiseExceptions = False

CONFIG = '''
custom_imports = dict(imports=['hgd_det.registered'], allow_failed_imports=False)
default_scope = 'mmdet'
input_size = 96
data_root = {data!r}
classes = ('disc', 'square', 'star')
model = {model!r}
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=False),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), keep_ratio=False),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs',
         meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(type='VOCDataset', metainfo=dict(classes=classes), data_root=data_root,
                 ann_file='VOC2007/ImageSets/Main/trainval.txt',
                 data_prefix=dict(sub_data_root='VOC2007/'), pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='VOCDataset', metainfo=dict(classes=classes), data_root=data_root,
                 ann_file='VOC2007/ImageSets/Main/test.txt', test_mode=True,
                 data_prefix=dict(sub_data_root='VOC2007/'), pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='VOCmAP', mode=['11points', 'area'])
test_evaluator = val_evaluator
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=4)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3),
                     clip_grad=dict(max_norm=35))
param_scheduler = [dict(type='OneCycleLR', eta_max=1e-3, total_steps=8, by_epoch=False)]
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))
log_processor = dict(by_epoch=False)
'''

XML = '''<annotation><filename>{name}.jpg</filename>
<size><width>{width}</width><height>{height}</height><depth>3</depth></size>{objects}</annotation>'''
OBJECT = '''<object><name>{label}</name><difficult>{difficult}</difficult><bndbox><xmin>{0}</xmin>
<ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox></object>'''

_runs = itertools.count()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """`thorough` modules: of each test the first case is fast, the others belong to `make test-all`."""
    seen = set()
    for item in items:
        if item.get_closest_marker('thorough'):
            test = item.path, item.originalname
            if test in seen:
                item.add_marker(pytest.mark.slow)
            seen.add(test)


def draw_set(root: Path, images: int = 12) -> None:
    import cv2
    rng = np.random.default_rng(0)
    for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (root / 'VOC2007' / folder).mkdir(parents=True)
    names = [f'{i:06d}' for i in range(images)]
    classes = ('disc', 'square', 'star')
    for i, name in enumerate(names):
        height, width = rng.integers(64, 97, 2)
        image = np.full((height, width, 3), 128, np.uint8)
        objects = []
        for number, label in enumerate((classes[i % 3], classes[(i + 1) % 3])):
            x, y = rng.integers(2, 30, 2)
            box = (x, y, x + 28, y + 28)
            cv2.rectangle(image, (x, y), (x + 28, y + 28), rng.integers(0, 255, 3).tolist(), -1)
            objects.append(OBJECT.format(*box, label=label, difficult=number))
        cv2.imwrite(str(root / f'VOC2007/JPEGImages/{name}.jpg'), image)
        (root / f'VOC2007/Annotations/{name}.xml').write_text(
            XML.format(name=name, width=width, height=height, objects=''.join(objects)))
    for split, part in (('trainval', names[:8]), ('test', names[8:])):
        (root / f'VOC2007/ImageSets/Main/{split}.txt').write_text('\n'.join(part) + '\n')


@pytest.fixture(scope='session')
def config(tmp_path_factory) -> Path:
    from hgd_det.testing import tiny_ssd
    folder = tmp_path_factory.mktemp('tiny')
    draw_set(folder / 'data')
    path = folder / 'tiny.py'
    path.write_text(CONFIG.format(data=f'{folder}/data/', model=tiny_ssd()))
    return path


@pytest.fixture(scope='session')
def hgd(config):
    """Run a verb on the tiny config in this process; returns the exit status."""
    from hgd_det.cli.main import main

    def call(verb, *rest, config=config, options=()):
        argv = [verb, str(config), *map(str, rest)]
        # mmengine keeps the logs of equally named runs of one second together
        if verb != 'inspect':
            options = (f'experiment_name=run{next(_runs)}', *options)
        return main([*argv, *(('--cfg-options', *options) if options else ())])

    return call


@pytest.fixture(scope='session')
def trained(hgd, tmp_path_factory) -> Path:
    """The work directory of a finished run of four iterations."""
    folder = tmp_path_factory.mktemp('trained')
    assert hgd('train', '--work-dir', folder) == 0
    return folder


@pytest.fixture
def free_port() -> str:
    from hgd_det.experiments import processes
    return processes.free_port()


@pytest.fixture
def launched(monkeypatch, free_port):
    """This process as the only one that a launcher started; `--launcher pytorch` joins it."""
    for key, value in dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1',
                           MASTER_PORT=free_port).items():
        monkeypatch.setenv(key, value)
