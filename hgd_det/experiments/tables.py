"""The matrices of runs behind the HGD paper's tables, at the paper's scale and at smaller ones.

Cells of equal settings are one cell: the last line of Table 4, the best of Table 2 and HGD in Table 3 are
the same runs.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hgd_det.errors import UserError
from hgd_det.paths import find_method, names, read_config

NAMES = ('1', '2', '3', '4', '5', '6', 'methods')


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        config: A pair of detectors, for a `method`; or a detector that trains alone.
        paper: The paper's number for each metric that it prints, in percent.
        alone: The config of the plain student that the gain counts from; '' for a line that gains nothing.
        single: Trained with one seed: a teacher.
    """
    label: str
    config: str
    method: str = ''
    options: str = ''
    paper: Mapping[str, float] = field(default_factory=dict)
    alone: str = ''
    single: bool = False


@dataclass(frozen=True)
class Table:
    """
    Attributes:
        metrics: What is compared, the one that gains are told in last.
        above: Pairs of labels whose order the paper states without numbers, the better first.
        note: What else a reader must know.
        costs: Show parameters, multiply-adds and speed too.
        classes: Show AP by class too.
        paper_classes: The paper's, by label.
    """
    name: str
    title: str
    scale: str
    lines: tuple[Line, ...]
    metrics: tuple[str, ...] = ('mAP',)
    above: tuple[tuple[str, str], ...] = ()
    note: str = ''
    costs: Mapping[str, tuple[float, float, float]] | None = None
    classes: bool = False
    paper_classes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """
    Attributes:
        measure: What its numbers are, in words.
        pair: The pair of detectors that the tables are about, of a `teacher` and a `student`.
        boxes: Teacher and student of its twin `PAIR_ld`, whose heads predict distributions.
        methods: Those that were compared on it; None for all there are.
        metric: The column of `results/*.csv` that stands beside the paper's mAP.
    """
    measure: str
    pair: str
    teacher: str
    student: str
    boxes: tuple[str, str] = ('', '')
    methods: tuple[str, ...] | None = None
    metric: str = 'mAP'


SCALES = {
    'voc': Scale('mAP@.5 (11 points) on VOC 2007 test', 'ssd_half_voc', 'ssd/ssd300_vgg16_voc',
                 'ssd/ssd300_half_voc', ('ld/ssd300_vgg16_voc', 'ld/ssd_half_voc_baseline'),
                 metric='mAP_11points'),
    'coco': Scale('AP on COCO val2017', 'ssd_half_coco', 'ssd/ssd300_vgg16_coco', 'ssd/ssd300_half_coco',
                  methods=('hgd', 'mask_guided')),
    'shapes': Scale('mAP@.5 (area) on the built-in shapes', 'shapes', 'shapes/teacher', 'shapes/student',
                    ('shapes/ld_teacher', 'shapes/ld_student')),
    'bccd': Scale('mAP@.5 (area) on blood cells (BCCD)', 'bccd', 'bccd/teacher', 'bccd/student',
                  ('bccd/ld_teacher', 'bccd/ld_student'), ('chen', 'hgd', 'hint', 'ld')),
}
PLAIN, MAPS = 65.6, 'model.terms.hgd'
NONE = f'{MAPS}.macro=none {MAPS}.micro=none'
BOTH = 'all together'

CLASSES = ('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
           'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train',
           'tvmonitor')
# label: method, mAP, AP by class
RIVALS = {
    'Hint': ('hint', 68.2, '71.5 80.0 58.9 59.0 33.8 79.7 83.6 78.3 50.9 66.6 '
                           '69.3 74.4 81.3 80.5 75.2 43.0 63.3 66.9 80.7 66.6'),
    'Fine-Grained': ('fine_grained', 70.1, '73.0 79.9 62.7 59.6 36.3 80.9 82.8 81.2 52.3 70.4 '
                                           '72.4 77.4 83.2 80.2 76.1 44.0 65.7 73.1 82.6 68.8'),
    # the last digit of its twentieth class is not known to us
    'Mask Guided': ('mask_guided', 70.2, '71.2 81.9 63.5 59.9 37.1 78.6 82.6 80.3 53.4 72.0 '
                                         '74.6 76.7 83.4 79.6 75.9 44.6 65.2 72.6 82.6'),
    'HGD': ('hgd', 72.6, '73.2 82.2 67.6 61.9 39.3 83.2 82.9 83.5 55.4 73.9 '
                         '73.0 79.9 84.9 82.1 77.0 48.0 71.3 76.7 85.1 70.5')}

SINGLE = {'voc': (300, 150, 75, 38, 19, 10, 5, 3, 1), 'shapes': (96, 48, 24, 12, 6, 3, 1)}
# of HGD: what is chosen, its options, the paper's mAP
WEIGHTS = (
    ('attention (macro alone)', f'{MAPS}.macro=attention {MAPS}.micro=none', 67.1),
    ('focal (macro alone)', f'{MAPS}.macro=focal {MAPS}.micro=none', 71.1),
    ('mean (macro alone)', f'{MAPS}.macro=mean {MAPS}.micro=none', 71.8),
    ('variance (macro alone)', f'{MAPS}.macro=variance {MAPS}.micro=none', 71.3),
    ('mean (micro alone)', f'{MAPS}.macro=none {MAPS}.micro=mean', 71.5),
    ('variance (micro alone)', f'{MAPS}.macro=none {MAPS}.micro=variance', 71.7),
    ('ground truth (micro alone)', f'{MAPS}.macro=none {MAPS}.micro=gt_mask', 72.2),
    ('focal + ground truth', f'{MAPS}.macro=focal', 72.2),
    ('mean + ground truth', f'{MAPS}.macro=mean', 72.3),
    ('variance + ground truth', '', 72.6))
ABLATION = (
    ('origin: L2, head maps', f'{MAPS}.distance=l2 {MAPS}.select=heads {NONE}', 68.1),
    ('+ hands-on: every map', f'{MAPS}.distance=l2 {MAPS}.select=all {NONE}', 68.3),
    ('+ cosine', f'{MAPS}.select=all {NONE}', 69.0),
    ('+ selection: last of each stage', NONE, 71.4),
    ('all of it on head maps (no hands-on)', f'{MAPS}.select=heads', 70.8),
    (BOTH, '', 72.6))
# The weight of the shapes was tuned for the cosine: with L2 the term balances itself, as the paper's do
L2 = {'shapes': f' {MAPS}.weight=auto {MAPS}.ratio=10.0'}
# label: plain detector, pair, paper's plain and distilled mAP, then M parameters, G multiply-adds, FPS
ARCHITECTURES = {
    'SSD300 half': ('ssd/ssd300_half_voc', 'ssd_half_voc', 65.6, 72.6, (7.41, 8.23, 121)),
    'SSD300-VGG11': ('ssd/ssd300_vgg11_voc', 'ssd_vgg11_voc', 72.7, 74.9, (20.79, 17.20, 128)),
    'SSD300-MobileNet': ('ssd/ssd300_mobilenet_voc', 'ssd_mobilenet_voc', 62.5, 65.6, (4.4, 1.19, 72))}
VGG16_COST = (26.29, 31.44, 98)


def table(name: str, scale: str | None = None) -> Table:
    """One of the paper's tables at a scale, by default the paper's; or `methods`, all that a scale has."""
    scale = scale or ('coco' if name == '6' else 'voc')
    makers = {'1': _stages, '2': _weights, '3': _rivals, '4': _ablation, '5': _architectures, '6': _coco,
              'methods': _methods}
    where = {'1': ('voc', 'shapes'), '2': ('voc', 'shapes'), '3': ('voc', 'shapes'), '4': ('voc', 'shapes'),
             '5': ('voc',), '6': ('coco',), 'methods': tuple(SCALES)}
    if name not in makers:
        raise UserError(f'table {name!r}; there are {", ".join(NAMES)}')
    if scale not in where[name]:
        raise UserError(f'Table {name} at the scale {scale} has no configs; --scale '
                        f'{" or ".join(where[name])}, or "methods" for all that {scale} has')
    return makers[name](scale)


def _base(scale: str) -> tuple[Line, Line]:
    known, paper = SCALES[scale], {'mAP': PLAIN}
    return (Line('teacher', known.teacher, paper={'mAP': 76.7}, single=True),
            Line('student alone', known.student, paper=paper))


def _hgd(scale: str, label: str, options: str, paper: float | None) -> Line:
    """A line of an ablation: options of HGD."""
    known = SCALES[scale]
    options += L2.get(scale, '') if f'{MAPS}.distance=l2' in options else ''
    return Line(label, known.pair, 'hgd', options, {} if paper is None else {'mAP': paper}, known.student)


def _stages(scale: str) -> Table:
    single = [_hgd(scale, f'{size}x{size}', f'{NONE} {MAPS}.sizes=[{size}]', None) for size in SINGLE[scale]]
    every = _hgd(scale, 'all stages', NONE, 71.4)
    return Table('1', 'imitation at single stages, without re-weighting', scale,
                 (*_base(scale), *single, every), above=tuple((every.label, line.label) for line in single),
                 note='The cells of the paper\'s Table 1 are not known to us, only what it concludes: early '
                      'stages help at least as much as late ones, and all most (71.4, from its Table 4).')


def _weights(scale: str) -> Table:
    return Table('2', 'weights of stages (macro) and places (micro)', scale,
                 (*_base(scale), *(_hgd(scale, *each) for each in WEIGHTS)))


def _rivals(scale: str) -> Table:
    known = SCALES[scale]
    lines = [*_base(scale), *(Line(label, known.pair, method, paper={'mAP': paper}, alone=known.student)
                              for label, (method, paper, _) in RIVALS.items())]
    values = {label: dict(zip(CLASSES, map(float, text.split()), strict=False))
              for label, (_, _, text) in RIVALS.items()}
    return Table('3', 'methods', scale, tuple(lines), classes=True,
                 paper_classes=values if scale == 'voc' else {})


def _ablation(scale: str) -> Table:
    return Table('4', 'ablation', scale, (*_base(scale), *(_hgd(scale, *each) for each in ABLATION)))


def _architectures(scale: str) -> Table:
    lines, costs = [_base(scale)[0]], {'teacher': VGG16_COST}
    for label, (plain, pair, alone, hgd, cost) in ARCHITECTURES.items():
        lines += [Line(label, plain, paper={'mAP': alone}),
                  Line(f'{label} + HGD', pair, 'hgd', paper={'mAP': hgd}, alone=plain)]
        costs[label] = cost
    return Table('5', 'architectures', scale, tuple(lines), costs=costs,
                 note="FPS at batch 1 without NMS: the paper's on a Titan Xp, ours on this machine.")


def _coco(scale: str) -> Table:
    known, metrics = SCALES[scale], ('AP50', 'AP75', 'mAP')

    def line(label, config, method, numbers, **more) -> Line:
        return Line(label, config, method, paper=dict(zip(metrics, numbers, strict=True)), **more)
    return Table('6', 'COCO', scale, (
        line('teacher', known.teacher, '', (39.5, 24.1, 23.4), single=True),
        line('student alone', known.student, '', (30.0, 16.8, 16.8)),
        line('Mask Guided', known.pair, 'mask_guided', (30.2, 17.0, 17.1), alone=known.student),
        line('HGD', known.pair, 'hgd', (32.8, 18.8, 18.7), alone=known.student)), metrics)


def _methods(scale: str) -> Table:
    known, table6 = SCALES[scale], _coco('coco')
    paper = {line.method: line.paper for line in table6.lines} if scale == 'coco' else \
        {method: {'mAP': mean} for method, mean, _ in RIVALS.values()}
    lines, heads = [], ()
    for method in known.methods or names('methods'):
        terms = read_config(find_method(method)).terms
        if any(term.type == 'LD' for term in terms.values()):
            heads = (Line('teacher, distribution head', known.boxes[0], single=True),
                     Line('student alone, distribution head', known.boxes[1]))
            lines.append(Line(method, f'{known.pair}_ld', method, alone=known.boxes[1]))
        else:
            lines.append(Line(method, known.pair, method, paper=paper.get(method, {}), alone=known.student))
    base = table6.lines[:2] if scale == 'coco' else _base(scale)
    return Table('methods', 'every method', scale, (*base, *heads, *lines),
                 table6.metrics if scale == 'coco' else ('mAP',))
