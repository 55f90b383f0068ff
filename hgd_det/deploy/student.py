"""The detector inside a checkpoint, ready to run: no teacher, no adapters, nothing to train."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

import hgd_det.registered  # noqa: F401  what configs name
from hgd_det import literal
from hgd_det.checkpoint import load, meta_of
from hgd_det.distill.sources import resolve
from hgd_det.distill.teacher import as_pair
from hgd_det.engine.mistakes import need_model, user_errors
from hgd_det.engine.runner import change, load_config, plain
from hgd_det.errors import UserError
from hgd_det.gate import PARTS, admit, sealed
from hgd_det.outputs import named_files
from hgd_det.weights import class_names, load_into, peer_state_dict, student_state_dict


@dataclass(frozen=True)
class Student:
    """A detector in evaluation mode with its weights, and what is known of it.

    `config` builds this detector alone; of a distillation it is the student's part. `taught` says by
    whom and how, where the config tells.
    """
    detector: nn.Module
    config: Config
    classes: tuple[str, ...]
    input_size: tuple[int, int] | None    # (height, width); None: images keep their shape
    path: Path
    meta: Mapping = field(default_factory=dict)
    taught: Mapping = field(default_factory=dict)
    reads: tuple[Path, ...] = ()    # the checkpoint, the config, and the files that this names: never outputs


def load_student(checkpoint: str | Path, config: str | Path | None = None,
                 options: Sequence[str] = (), peer: str | None = None,
                 method: str | None = None) -> Student:
    """The student of a checkpoint of any kind: of plain training, of a distillation, exported.

    Without `config` the one inside the checkpoint is read: it is data, and passes the gate before anything
    is built from it.
    A checkpoint of another config is refused with the keys that differ. `method` is one
    to add to a pair (see `read_config`); `peer` names a term that trained
    a detector of its own beside the student (DML): that one is taken instead.
    """
    content = load(checkpoint)
    meta = meta_of(content, checkpoint)
    if config is not None:
        cfg = load_config(config, options, method)
    else:
        cfg = _config_inside(meta, checkpoint)
        change(cfg, options, checkpoint)
    need_model(cfg)
    taught = _taught(cfg)
    reads = tuple(named_files([str(checkpoint), str(config or ''), cfg.to_dict()]))
    if peer is None:
        cfg, weights = plain(cfg), student_state_dict(content)
    else:
        weights = peer_state_dict(content, peer)
        cfg, taught['peer'] = _with_peer(cfg, peer, inside=config is None), peer
    if config is None:
        cfg = admit(cfg.to_dict(), checkpoint)
    detector = build(cfg)
    load_into(detector, weights, what=f'checkpoint {checkpoint}')
    classes = _classes(cfg, meta, detector)
    detector.dataset_meta = dict(classes=classes)
    return Student(detector, cfg, classes, fixed_size(cfg), Path(checkpoint), meta, taught, reads)


@contextlib.contextmanager
def building(cfg: Config) -> Iterator[None]:
    """Where something is built from a config: mistakes in it are the user's; one out of a file is sealed."""
    scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmdet')
    with scope, user_errors(), sealed(cfg):
        yield


def build(cfg: Config) -> nn.Module:
    """The detector of a plain config, in evaluation mode; no pretrained weights are sought."""
    with building(cfg):
        return MODELS.build(cfg.model).eval()


def _config_inside(meta: Mapping, checkpoint) -> Config:
    """The config as it was dumped: data still, of which nothing may be built before it passed the gate."""
    text = meta.get('cfg')
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'{checkpoint} does not say which config it was trained with; give it: '
                        '--config CONFIG')
    return Config({key: value for key, value in literal.read(text).items() if key in PARTS})


def _with_peer(cfg: Config, name: str, inside: bool) -> Config:
    """The plain config of the run with the peer of a term in the student's place."""
    terms = cfg.model.get('terms') if cfg.model.get('type') == 'Distiller' else None
    if not (terms or {}).get(name):
        raise UserError(f'the config has no term {name!r}, whose peer is asked for; give the config of '
                        'the run')
    peer, alone = terms[name].get('peer'), plain(cfg)
    if isinstance(peer, (str, Path)) and inside:  # a file does not choose what is executed
        raise UserError(f'the peer of {name!r} has a config of its own, {peer}, which the checkpoint '
                        'does not hold; give the config of the run instead of "auto"')
    if peer is not None:
        alone.model = resolve(peer).model
    return alone


def _taught(cfg: Config) -> dict:
    """Teacher and terms of a distillation's config; what an exported checkpoint still knows of them."""
    if cfg.model.get('type') != 'Distiller':
        return dict(cfg.get('taught') or {})
    teachers, teacher, terms = (part if isinstance(part, Mapping) else {} for part in map(
        cfg.model.get, ('teachers', 'teacher', 'terms')))
    known = [one for one in teachers.values() if isinstance(one, Mapping)] or [teacher]
    named, files = ([one for one in found if isinstance(one, (str, Path))] for found in (
        [one.get('model', one.get('config')) if one else 'none' for one in known],
        [one.get('checkpoint') for one in known]))
    return dict(teacher=', '.join(map(str, named)) or None,
                teacher_checkpoint=', '.join(map(str, files)) or None,
                terms={name: term.get('type') for name, term in terms.items() if isinstance(term, Mapping)})


def _classes(cfg: Config, meta: Mapping, detector: nn.Module) -> tuple[str, ...]:
    """The names the run recorded, else the config's, else plain numbers."""
    kind = test_set(cfg).get('type')
    head = getattr(detector, 'bbox_head', None) or detector.roi_head.bbox_head
    number = (head[0] if isinstance(head, nn.ModuleList) else head).num_classes
    for dataset_meta in (meta.get('dataset_meta'), test_set(cfg).get('metainfo'),
                         getattr(kind and DATASETS.get(kind), 'METAINFO', None)):
        names = class_names(dict(meta=dict(dataset_meta=dataset_meta)))
        if names and len(names) == number:
            return names
    return tuple(str(index) for index in range(number))


def test_set(cfg: Config) -> Mapping:
    """The config of the test data set, out of what wraps it."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def build_test_set(cfg: Config):
    """The test data set itself, wrapped as the config has it."""
    with building(cfg):
        return DATASETS.build(cfg.test_dataloader.dataset)


def nominal_size(cfg: Config) -> tuple[int, int] | None:
    """(height, width): the config's `input_size`, else what its test pipeline resizes to, if it does."""
    if cfg.get('input_size') is not None:
        return as_pair(cfg.input_size)
    scales = [step['scale'] for step in test_set(cfg).get('pipeline') or []
              if step.get('type') == 'Resize' and isinstance(step.get('scale'), (list, tuple))]
    return as_pair(tuple(scales[0])[::-1]) if scales else None  # mmdet gives (width, height)


def test_pipeline(cfg: Config) -> list[dict]:
    pipeline = test_set(cfg).get('pipeline') or cfg.get('test_pipeline')
    if not pipeline:
        raise UserError('the config has no test pipeline, which says how images are resized')
    return pipeline


def fixed_size(cfg: Config) -> tuple[int, int] | None:
    """(height, width) that the test pipeline stretches every image to, if it does."""
    try:
        steps = test_pipeline(cfg)
    except UserError:
        steps = []
    for step in steps:
        if step.get('type') == 'Resize' and not step.get('keep_ratio', False) and step.get('scale'):
            width, height = step['scale']
            return int(height), int(width)
    return None
