"""A teacher with an input_size of its own sees what the student's size has lost: whole runs.

Pictures are a checkerboard of one-pixel squares, or the grey of its mean; at half size both are that grey.
The teacher's map is the answer of a fixed high pass. One dark object lies in each.
"""
import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import BaseModel
from torch import nn

import hgd_det.registered  # noqa: F401
from hgd_det.distill.registry import TERMS
from hgd_det.distill.term import Term
from hgd_det.errors import UserError
from hgd_det.testing import tiny_ssd
from hgd_det.training.runner import build_runner

pytestmark = pytest.mark.thorough

SIDE, SMALL = 192, 96
BOX = (30, 70, 130, 160)    # nowhere near the middle: a wrong flip or crop shows
CROP = dict(type='RandomCrop', crop_size=(SIDE, SIDE))
FLIPS = dict(type='RandomFlip', prob=[0.25] * 3, direction=['horizontal', 'vertical', 'diagonal'])
COLOURS = dict(type='PhotoMetricDistortion', brightness_delta=4, contrast_range=(0.9, 1.1),
               saturation_range=(0.9, 1.1), hue_delta=3)
FUSED = [dict(type='LoadAnnotations', with_bbox=True),
         dict(type='SSDAugment', scale=(SMALL, SMALL), expand_prob=0, min_ious=(0.9,), min_crop_size=0.9,
              reduce=False)]


@MODELS.register_module()
class HighPass(BaseModel):
    """|Laplacian| of the grey picture, averaged to each of three sizes."""

    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.kernel = nn.Conv2d(3, 1, 3, padding=1, bias=False, padding_mode='replicate')
        nn.init.zeros_(self.kernel.weight)
        self.kernel.weight.data[0, :, :, :] = torch.tensor([[0., -1, 0], [-1, 4, -1], [0, -1, 0]]) / 12
        self.stages = nn.ModuleList(nn.AvgPool2d(stride) for stride in (2, 4, 8))

    def extract_feat(self, x):
        x = self.kernel(x).abs()
        return tuple(stage(x) for stage in self.stages)

    forward = extract_feat


@TERMS.register_module()
class Witness(Term):
    """Keeps what the teacher put out, and teaches nothing."""
    needs = requires = frozenset({'maps', 'boxes'})
    seen: list = []

    def setup(self, spec):
        self.student_taps, self.teacher_taps = ['backbone.features.0'], ['stages.0']

    def forward(self, lesson):
        self.seen.append((lesson.teacher.maps['stages.0'].clone(), [box.clone() for box in lesson.boxes],
                          [sample.img_path for sample in lesson.samples]))
        return dict(loss=lesson.student.maps['backbone.features.0'].mean() * 0)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('boards')
    for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (root / 'VOC2007' / folder).mkdir(parents=True)
    rows, columns = np.indices((SIDE, SIDE + 64))
    names = []
    for number in range(8):
        name = f'{"board" if number % 2 else "grey"}{number}'
        image = np.where((rows + columns) % 2, 156, 100) if number % 2 else np.full(rows.shape, 128)
        x1, y1, x2, y2 = BOX
        image[y1:y2, x1:x2] = 90
        cv2.imwrite(str(root / f'VOC2007/JPEGImages/{name}.png'), image.astype(np.uint8))
        (root / f'VOC2007/Annotations/{name}.xml').write_text(
            f'<annotation><size><width>{SIDE + 64}</width><height>{SIDE}</height></size><object>'
            f'<name>thing</name><bndbox><xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2 + 1}</xmax>'
            f'<ymax>{y2 + 1}</ymax></bndbox></object></annotation>')
        names.append(name)
    (root / 'VOC2007/ImageSets/Main/trainval.txt').write_text('\n'.join(names))
    return root


def config(data, folder, middle, size=SIDE, workers=0, iterations=3):
    pipeline = [*middle, dict(type='PackDetInputs', meta_keys=('img_path', 'img_shape', 'flip'))]
    own = dict(type='DetDataPreprocessor', mean=[100.] * 3, std=[10.] * 3, bgr_to_rgb=True)
    teacher = dict(model=dict(model=dict(type='HighPass', data_preprocessor=own)), checkpoint='untrained')
    terms = dict(witness=dict(type='Witness', weight=1.0, warmup=0))
    return Config(dict(
        default_scope='mmdet', work_dir=str(folder), randomness=dict(seed=3), model=dict(
            type='Distiller', student=tiny_ssd(num_classes=1), input_size=SMALL, terms=terms,
            teacher=dict(teacher, input_size=size) if size else teacher),
        custom_hooks=[dict(type='DistillHook')], experiment_name=folder.name,
        train_dataloader=dict(
            batch_size=4, num_workers=workers, sampler=dict(type='InfiniteSampler', shuffle=True),
            dataset=dict(type='VOCFolder', metainfo=dict(classes=('thing',)), data_root=f'{data}/',
                         ann_file='VOC2007/ImageSets/Main/trainval.txt',
                         data_prefix=dict(sub_data_root='VOC2007/'), pipeline=pipeline)),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=iterations, val_interval=100),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e-3)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2)),
        log_processor=dict(by_epoch=False)))


def steps(*middle):
    return [dict(type='RobustLoadImage'), dict(type='LoadAnnotations', with_bbox=True), *middle]


def train(cfg):
    """What the teacher put out, and the batches that the student saw."""
    Witness.seen.clear()
    runner, batches = build_runner(copy.deepcopy(cfg)), []
    runner.model.student.backbone.register_forward_pre_hook(
        lambda module, args: batches.append(args[0].clone()) if module.training else None)
    runner.train()
    return list(Witness.seen), batches, runner


def resized():
    return dict(type='Resize', scale=(SMALL, SMALL), keep_ratio=False)


@pytest.mark.parametrize('middle, workers', [
    (steps(CROP, resized(), FLIPS), 0),
    pytest.param(steps(CROP, resized(), FLIPS, COLOURS), 2, marks=pytest.mark.slow)],
    ids=['crops and flips', 'colours too, in workers'])
def test_the_teacher_sees_what_the_students_size_has_lost(data, tmp_path, middle, workers):
    seen, batches, _ = train(config(data, tmp_path, middle, workers=workers))
    assert len(seen) == 3
    found = {'board': [], 'grey': []}
    for (maps, boxes, paths), batch in zip(seen, batches, strict=True):
        assert maps.shape[1:] == (1, SIDE // 2, SIDE // 2) and batch.shape[-2:] == (SMALL, SMALL)
        for answer, objects, path, picture in zip(maps, boxes, paths, batch, strict=True):
            inside = torch.zeros(SIDE // 2, SIDE // 2, dtype=torch.bool)
            x1, y1, x2, y2 = (objects[0] * (SIDE / 2 / SMALL)).round().int().tolist()
            inside[y1:y2, x1:x2] = True
            rim = F.max_pool2d(inside[None].float(), 5, 1, 2)[0].bool()
            rim &= F.max_pool2d((~inside)[None].float(), 5, 1, 2)[0].bool()
            assert (answer[0][inside & ~rim] < 1e-3).all()    # without texture, it lies where its box is
            outside = ~inside & ~rim
            kind = Path(path).stem[:-1]
            found[kind].append(answer[0][outside].min().item())
            lost = picture[:, outside]    # the student's picture has the same number of cells
            assert lost.std(1).max() < 0.05
    assert min(found['board']) > 1 and max(found['grey']) < 1e-3, found


@pytest.mark.slow
def test_boxes_lie_where_the_object_is_with_the_fused_augmentation(data, tmp_path):
    seen, _, _ = train(config(data, tmp_path, FUSED))
    for maps, boxes, paths in seen:
        for answer, objects, path in zip(maps, boxes, paths, strict=True):
            x1, y1, x2, y2 = objects[0].round().int().tolist()
            if 'board' in Path(path).stem and min(x2 - x1, y2 - y1) > 12:
                assert answer[0, y1 + 3:y2 - 3, x1 + 3:x2 - 3].max() < 0.2 * answer[0].max()


@pytest.mark.slow
@pytest.mark.parametrize('middle', [steps(CROP, resized(), FLIPS, COLOURS), FUSED], ids=['mmdet', 'fused'])
def test_the_students_batches_are_what_they_are_without_it(data, tmp_path, middle):
    plain, other = (train(config(data, tmp_path / str(size), middle, size))[1] for size in (None, SIDE))
    assert len(plain) == 3 and all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run(data, tmp_path):
    middle = steps(CROP, resized(), FLIPS, COLOURS)
    whole = train(config(data, tmp_path / 'whole', middle, iterations=4))[0]
    train(config(data, tmp_path / 'part', middle, iterations=2))
    cfg = config(data, tmp_path / 'part', middle, iterations=4)
    cfg.resume, cfg.load_from = True, str(tmp_path / 'part' / 'iter_2.pth')
    rest = train(cfg)[0]
    assert len(rest) == 2 and all(torch.equal(a, b) and p == q for (a, _, p), (b, _, q) in
                                  zip(whole[2:], rest, strict=True))


def test_a_pipeline_that_cannot_be_done_at_two_sizes_is_refused_before_the_first_step(data, tmp_path):
    middle = steps(dict(type='Resize', scale=(SMALL, SMALL), keep_ratio=True))
    with pytest.raises(UserError, match='192x192.*keep_ratio=False'):
        train(config(data, tmp_path, middle))
    assert not Witness.seen


@pytest.mark.slow
def test_mmengines_own_runner_is_told_by_the_hook(data, tmp_path):
    from mmengine.runner import Runner
    cfg = config(data, tmp_path, steps(CROP, resized()))
    Witness.seen.clear()
    Runner.from_cfg(cfg).train()
    assert max(maps.max().item() for maps, *_ in Witness.seen) > 1
