"""A step of HGD against a step of the student alone and a forward pass of its teacher."""
from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hgd_det.experiments.benchmarks.measure import Row, compare, row, turns

SSD, SHAPES = 'ssd_half_voc', 'shapes'     # pairs
STAGES = {1: [38], 3: [75, 38, 19]}     # of SSD300, whose other choice is all nine
HALFWAY = 0.5    # of the training: every term counts
SUM = 'HGD / (student + teacher)'


def run(options: argparse.Namespace) -> Iterator[Row]:
    from hgd_det.training.runner import keep_freed_memory
    keep_freed_memory()
    few = max(1, options.rounds // 3)
    shapes = Steps(SHAPES)    # the small ones first: no training shares its heap with SSD300
    yield shapes.cost(32, 96, 3 * options.rounds, '<=1.15')
    yield shapes.cost(8, 192, options.rounds)
    del shapes
    ssd = Steps(SSD)
    yield ssd.cost(4, 300, options.rounds, '<=1.10')
    yield ssd.beside_the_obvious(4, 300, few)
    for batch in (1, 8):
        yield ssd.cost(batch, 300, few)
    del ssd
    for count, sizes in STAGES.items():
        yield Steps(SSD, sizes=sizes).cost(1, 300, few, note=f', {count} stage{"s" * (count > 1)}')


class Steps:
    """HGD, its student alone and its teacher alone, over the same batch.

    Args:
        pair: Its teacher and the student begin with random weights.
        term: Other arguments of the term.
    """

    def __init__(self, pair: str, **term):
        from hgd_det.paths import read_config
        from hgd_det.training.runner import load_config
        _register()
        cfg = load_config(pair, method='hgd')
        taught = read_config(cfg.model.teacher.model)
        for model in (taught.model, cfg.model.student):
            model.backbone.init_cfg = None
        cfg.model.teacher.update(model=taught, checkpoint='untrained')
        cfg.model.terms.hgd.update(term)
        self.config, self.classes = cfg, cfg.model.student.bbox_head.num_classes
        self.sides = {}

    def side(self, name: str):
        """The training of ``hgd`` or of the student ``alone``, built when it is first asked for."""
        from hgd_det.experiments.cost import Training
        from hgd_det.training.runner import plain
        if name not in self.sides:
            torch.manual_seed(0)
            config = self.config if name == 'hgd' else plain(self.config)
            side = self.sides[name] = Training(config, total=100)
            if name == 'hgd':
                side.model.teacher.detector.to(memory_format=torch.channels_last)    # as it is after a step
        return self.sides[name]

    @cached_property
    def plain_teacher(self) -> nn.Module:
        from mmdet.registry import MODELS
        model = MODELS.build(self.config.model.teacher.model.model)
        return model.eval().to(memory_format=torch.channels_last)

    @property
    def term(self):
        return self.side('hgd').model.distill['hgd']

    def take(self, batch: int, size: int) -> None:
        data = shapes_batch(batch, size) if self.classes == 6 else voc_batch(batch, size, self.classes)
        for side in self.sides.values():
            side.take(copy.deepcopy(data))

    @torch.no_grad()
    def teach(self) -> tuple[Tensor, ...]:
        """A forward pass of the teacher as it was trained, with its norms, but for its head."""
        ready = next(iter(self.sides.values())).ready['inputs'].contiguous(memory_format=torch.channels_last)
        return self.plain_teacher.extract_feat(ready)

    def cost(self, batch: int, size: int, rounds: int, goal: str = '', note: str = '') -> Row:
        """How many times the student's step and the teacher's pass, taken together, a step of HGD takes."""
        hgd, alone = self.side('hgd'), self.side('alone')
        self.take(batch, size)
        times = 1e3 * turns([partial(hgd.step, HALFWAY), partial(alone.step, HALFWAY), self.teach], rounds)
        ours, other = times[:, 0], times[:, 1] + times[:, 2]
        name = 'shapes' if self.classes == 6 else 'SSD300 -> half'
        return row(f'{SUM}, {name}, {size}x{size}, batch {batch}{note}', 'ms/step', float(np.median(ours)),
                   float(np.median(other)), (ours / other).tolist(), goal)

    def beside_the_obvious(self, batch: int, size: int, rounds: int) -> Row:
        self.side('hgd')
        self.take(batch, size)
        lesson = self.lesson()
        ours, other = (partial(learn, term, lesson) for term in (self.term, Obvious(self.term)))
        return compare(f'the term, there and back / written the obvious way, {size}x{size}, batch {batch}',
                       'terms/s', ours, other, work=1, rounds=rounds)

    def lesson(self):
        """Both detectors' maps of the last batch; the student's are leaves that learn."""
        from hgd_det.distill.lesson import Side
        model, ready = self.side('hgd').model, self.side('hgd').ready
        with torch.no_grad():
            lesson = model.lesson(ready['inputs'], ready['data_samples'])[0].limited('hgd', self.term)
        lesson.student = Side({tap: lesson.student.maps[tap].detach().requires_grad_()
                               for tap in self.term.student_taps})
        return lesson


# the plain alternative ------------------------------------------------------------------------
class Obvious:
    """HGD with cosine distance, variance and gt_mask as one writes its formula down: whole maps, autograd.

    Equal to the term in value and gradient, but for cells where the adapted map is 0: there torch's
    cosine has a gradient of length 1e8, and the term has none.
    """

    def __init__(self, term):
        self.pairs, self.adapters = term.pairs, term.adapters

    def parameters(self) -> Iterator[Tensor]:
        return self.adapters.parameters()

    def __call__(self, lesson) -> dict[str, Tensor]:
        total = 0.0
        for pair in self.pairs:
            S, Z = lesson.student.maps[pair.student.tap], lesson.teacher.maps[pair.teacher.tap]
            distance = 1 - F.cosine_similarity(self.adapters[pair.name](S), Z, dim=1)
            mask = inside(lesson.boxes, Z.shape[-2:], lesson.input_shape) * (Z.norm(dim=1) >= 1e-6)
            mean = (mask * distance).sum((1, 2)) / mask.sum((1, 2)).clamp(min=1)
            weight = S.detach().var(1, unbiased=False).sigmoid().mean((1, 2))
            total = total + (weight * mean).mean()
        return dict(loss=total)


def inside(boxes: Sequence[Tensor], size: tuple[int, int], input_shape: tuple[int, int]) -> Tensor:
    """(B,H,W): 1 in the cells that some box overlaps, one at least of each."""
    mask = torch.zeros(len(boxes), *size)
    for image, objects in zip(mask, boxes, strict=True):
        for x1, y1, x2, y2 in objects.tolist():
            (top, bottom), (left, right) = (
                (min(int(low * cells / pixels + 1e-4), cells - 1), int(np.ceil(high * cells / pixels - 1e-4)))
                for low, high, cells, pixels in zip((y1, x1), (y2, x2), size, input_shape, strict=True))
            image[top:max(bottom, top + 1), left:max(right, left + 1)] = 1
    return mask


def learn(term, lesson) -> float:
    """The value of a term and the gradients of all that it teaches."""
    lesson.memo.clear()
    for leaf in (*lesson.student.maps.values(), *term.parameters()):
        leaf.grad = None
    value = term(lesson)['loss']
    value.backward()
    return value.item()


# batches --------------------------------------------------------------------------------------
def voc_batch(count: int, size: int, classes: int, seed: int = 0) -> dict:
    """Noise, with as many boxes as VOC has (2.4); they cover as much of it (0.35) as after SSD's cropping."""
    rng = np.random.default_rng(seed)
    images, labelled = [], []
    for _ in range(count):
        side = np.exp(rng.uniform(np.log(0.12), 0, (1 + rng.poisson(1.4), 2)))
        corner = rng.uniform(0, 1 - side)
        labelled.append((np.c_[corner, corner + side] * size, rng.integers(classes, size=len(side))))
        images.append(rng.integers(0, 256, (3, size, size), dtype=np.uint8))
    return _packed(images, labelled, size)


def shapes_batch(count: int, size: int) -> dict:
    """The first training images of the built-in shapes."""
    from hgd_det.data import shapes
    images, labelled = [], []
    for index in range(count):
        image, boxes = shapes.picture('train', index, size=size)
        images.append(np.ascontiguousarray(image.transpose(2, 0, 1)))
        table = np.array(boxes, dtype=float).reshape(-1, 5)
        labelled.append((table[:, 1:], table[:, 0].astype(int)))
    return _packed(images, labelled, size)


def _packed(images: list[np.ndarray], labelled: list[tuple], size: int) -> dict:
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData
    samples = []
    for number, (boxes, labels) in enumerate(labelled):
        sample = DetDataSample(metainfo=dict(
            img_id=number, scale_factor=(1.0, 1.0),
            **dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (size, size))))
        sample.gt_instances = InstanceData(bboxes=torch.from_numpy(boxes).float(),
                                           labels=torch.from_numpy(labels))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4),
                                                labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    return dict(inputs=list(map(torch.from_numpy, images)), data_samples=samples)


def _register() -> None:
    import warnings

    import mmengine.logging
    from mmdet.utils import register_all_modules

    import hgd_det.registered  # noqa: F401
    register_all_modules()
    warnings.filterwarnings('ignore', category=UserWarning)
    mmengine.logging.MMLogger.get_current_instance().setLevel('ERROR')
