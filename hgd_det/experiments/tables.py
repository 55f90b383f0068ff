"""The matrices of runs behind the HGD paper's tables, at the paper's scale and at smaller ones.

Cells of equal settings are one cell: the last line of Table 4, the best of Table 2 and HGD in Table 3 are
the same runs.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hgd_det.errors import UserError
from hgd_det.paths import ROOT, read_config

NAMES = ('1', '2', '3', '4', '5', '6', 'methods')


@dataclass(frozen=True)
class Line:
    """One line of a table.

    Attributes:
        paper: The paper's number for each metric that it prints, in percent.
        alone: The config of the plain student that the gain counts from; '' for a line that gains nothing.
        single: Trained with one seed: a teacher.
    """
    label: str
    config: str
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
        metric: The column of `results/*.csv` that stands beside the paper's mAP.
        methods: Where the configs of its methods lie.
    """
    measure: str
    teacher: str
    student: str
    hgd: str
    methods: tuple[str, ...]
    metric: str = 'mAP'


SCALES = {
    'voc': Scale('mAP@.5 (11 points) on VOC 2007 test', 'configs/ssd/ssd300_vgg16_voc.py',
                 'configs/ssd/ssd300_half_voc.py', 'configs/hgd/ssd_half_voc.py',
                 ('configs/rivals/*_half_voc.py', 'configs/*/ssd_half_voc.py',
                  'configs/lectures/*_half_voc.py'), 'mAP_11points'),
    'coco': Scale('AP on COCO val2017', 'configs/ssd/ssd300_vgg16_coco.py', 'configs/ssd/ssd300_half_coco.py',
                  'configs/hgd/ssd_half_coco.py', ('configs/*/*half_coco.py',)),
    'shapes': Scale('mAP@.5 (area) on the built-in shapes', 'configs/shapes/teacher.py',
                    'configs/shapes/student.py', 'configs/shapes/hgd.py', ('configs/shapes/*.py',)),
    'bccd': Scale('mAP@.5 (area) on blood cells (BCCD)', 'configs/bccd/teacher.py', 'configs/bccd/student.py',
                  'configs/bccd/hgd.py', ('configs/bccd/*.py',)),
}
PLAIN, MAPS = 65.6, 'model.terms.hgd'
NONE = f'{MAPS}.macro=none {MAPS}.micro=none'
BOTH = 'all together'

CLASSES = ('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow',
           'diningtable', 'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train',
           'tvmonitor')
# label: file, mAP, AP by class
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

# options of configs/shapes/hgd.py, the config for VOC, the paper's mAP
SINGLE = {'voc': (300, 150, 75, 38, 19, 10, 5, 3, 1), 'shapes': (96, 48, 24, 12, 6, 3, 1)}
WEIGHTS = (
    ('attention (macro alone)', f'{MAPS}.macro=attention {MAPS}.micro=none', 't2_macro_attention', 67.1),
    ('focal (macro alone)', f'{MAPS}.macro=focal {MAPS}.micro=none', 't2_macro_focal', 71.1),
    ('mean (macro alone)', f'{MAPS}.macro=mean {MAPS}.micro=none', 't2_macro_mean', 71.8),
    ('variance (macro alone)', f'{MAPS}.macro=variance {MAPS}.micro=none', 't2_macro_variance', 71.3),
    ('mean (micro alone)', f'{MAPS}.macro=none {MAPS}.micro=mean', 't2_micro_mean', 71.5),
    ('variance (micro alone)', f'{MAPS}.macro=none {MAPS}.micro=variance', 't2_micro_variance', 71.7),
    ('ground truth (micro alone)', f'{MAPS}.macro=none {MAPS}.micro=gt_mask', 't2_micro_gt', 72.2),
    ('focal + ground truth', f'{MAPS}.macro=focal', 't2_focal_gt', 72.2),
    ('mean + ground truth', f'{MAPS}.macro=mean', 't2_mean_gt', 72.3),
    ('variance + ground truth', '', None, 72.6))
HINT = f'{NONE} {MAPS}.weight=auto {MAPS}.ratio=10.0'
ABLATION = (
    ('origin: L2, head maps', f'{MAPS}.distance=l2 {MAPS}.select=heads {HINT}', 't4_origin', 68.1),
    ('+ hands-on: every map', f'{MAPS}.distance=l2 {MAPS}.select=all {HINT}', 't4_hands_on', 68.3),
    ('+ cosine', f'{MAPS}.select=all {NONE}', 't4_cosine', 69.0),
    ('+ selection: last of each stage', NONE, 't4_selection', 71.4),
    ('all of it on head maps (no hands-on)', f'{MAPS}.select=heads', 't4_without_hands_on', 70.8),
    (BOTH, '', None, 72.6))
# label: plain config, distilled, paper's plain and distilled mAP, then M parameters, G multiply-adds, FPS
ARCHITECTURES = {
    'SSD300 half': ('ssd/ssd300_half_voc', 'hgd/ssd_half_voc', 65.6, 72.6, (7.41, 8.23, 121)),
    'SSD300-VGG11': ('ssd/ssd300_vgg11_voc', 'hgd/ssd_vgg11_voc', 72.7, 74.9, (20.79, 17.20, 128)),
    'SSD300-MobileNet': ('ssd/ssd300_mobilenet_voc', 'hgd/ssd_mobilenet_voc', 62.5, 65.6, (4.4, 1.19, 72))}
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


def _hgd(scale: str, label: str, options: str, file: str | None, paper: float | None) -> Line:
    """A line of an ablation: on VOC a config of its own, on the shapes options of one."""
    known = SCALES[scale]
    config = f'configs/hgd/ablation/{file}.py' if scale == 'voc' and file else known.hgd
    return Line(label, config, '' if scale == 'voc' else options, {} if paper is None else {'mAP': paper},
                known.student)


def _stages(scale: str) -> Table:
    sizes = SINGLE[scale]
    single = [_hgd(scale, f'{size}x{size}', f'{NONE} {MAPS}.sizes=[{size}]', f't1_stage_{size}', None)
              for size in sizes]
    every = _hgd(scale, 'all stages', NONE, 't4_selection', 71.4)
    return Table('1', 'imitation at single stages, without re-weighting', scale,
                 (*_base(scale), *single, every), above=tuple((every.label, line.label) for line in single),
                 note='The cells of the paper\'s Table 1 are not known to us, only what it concludes: early '
                      'stages help at least as much as late ones, and all most (71.4, from its Table 4).')


def _weights(scale: str) -> Table:
    return Table('2', 'weights of stages (macro) and places (micro)', scale,
                 (*_base(scale), *(_hgd(scale, *each) for each in WEIGHTS)))


def _rivals(scale: str) -> Table:
    lines, alone = list(_base(scale)), SCALES[scale].student
    for label, (file, paper, _) in RIVALS.items():
        config = f'configs/shapes/{file}.py' if scale == 'shapes' else SCALES[scale].hgd if file == 'hgd' \
            else f'configs/rivals/{file}_half_voc.py'
        lines.append(Line(label, config, paper={'mAP': paper}, alone=alone))
    values = {label: dict(zip(CLASSES, map(float, text.split()), strict=False))
              for label, (_, _, text) in RIVALS.items()}
    return Table('3', 'methods', scale, tuple(lines), classes=True,
                 paper_classes=values if scale == 'voc' else {})


def _ablation(scale: str) -> Table:
    return Table('4', 'ablation', scale, (*_base(scale), *(_hgd(scale, *each) for each in ABLATION)))


def _architectures(scale: str) -> Table:
    lines, costs = [_base(scale)[0]], {'teacher': VGG16_COST}
    for label, (plain, taught, alone, hgd, cost) in ARCHITECTURES.items():
        plain = f'configs/{plain}.py'
        lines += [Line(label, plain, paper={'mAP': alone}),
                  Line(f'{label} + HGD', f'configs/{taught}.py', paper={'mAP': hgd}, alone=plain)]
        costs[label] = cost
    return Table('5', 'architectures', scale, tuple(lines), costs=costs,
                 note="FPS at batch 1 without NMS: the paper's on a Titan Xp, ours on this machine.")


def _coco(scale: str) -> Table:
    known, rival = SCALES[scale], 'configs/rivals/mask_guided_half_coco.py'
    metrics = ('AP50', 'AP75', 'mAP')

    def line(label, config, numbers, **more) -> Line:
        return Line(label, config, paper=dict(zip(metrics, numbers, strict=True)), **more)
    return Table('6', 'COCO', scale, (
        line('teacher', known.teacher, (39.5, 24.1, 23.4), single=True),
        line('student alone', known.student, (30.0, 16.8, 16.8)),
        line('Mask Guided', rival, (30.2, 17.0, 17.1), alone=known.student),
        line('HGD', known.hgd, (32.8, 18.8, 18.7), alone=known.student)), metrics)


def _methods(scale: str) -> Table:
    known = SCALES[scale]
    table6, metrics = _coco('coco'), ('mAP',)
    paper = {file: {'mAP': mean} for file, mean, _ in RIVALS.values()}
    if scale == 'coco':
        metrics, paper = table6.metrics, {_label(line.config): line.paper for line in table6.lines}
    bases, lines = {}, []
    for config in dict.fromkeys(str(path.relative_to(ROOT)) for pattern in known.methods
                                for path in sorted(ROOT.glob(pattern))):
        model = read_config(config).model
        if model.type != 'Distiller':
            continue
        alone = _alone(scale, model.student.bbox_head.type)
        lines.append(Line(_label(config), config, paper=paper.get(_label(config), {}), alone=alone))
        teacher = model.get('teacher') or {}
        bases |= {alone: False} | ({teacher.model: True} if teacher.get('checkpoint') else {})
    base = table6.lines[:2] if scale == 'coco' else _base(scale)
    heads = [Line(_label(config), config, single=single) for config, single in sorted(bases.items())
             if config not in {line.config for line in base}]
    return Table('methods', 'every method', scale, (*base, *heads, *lines), metrics)


def _alone(scale: str, head: str) -> str:
    """The plain student with this head."""
    if head != 'DistributionSSDHead':
        return SCALES[scale].student
    return {'voc': 'configs/ld/ssd_half_voc_baseline.py'}.get(scale, f'configs/{scale}/ld_student.py')


def _label(config: str) -> str:
    """`configs/chen/ssd_half_voc.py` is `chen`, `configs/shapes/hint.py` is `hint`."""
    *_, folder, file = config.removesuffix('.py').split('/')
    stem = file.removesuffix('_voc').removesuffix('_coco').removesuffix('_half')
    return {'ssd': folder, 'ssd300_vgg16': f'{folder} teacher'}.get(stem, stem)
