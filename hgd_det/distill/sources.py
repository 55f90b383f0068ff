"""What a teacher's `model=` may be: each kind gives a config, and where it implies one, a checkpoint."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mmengine.config import Config, ConfigDict

from hgd_det import checkpoint as checkpoints
from hgd_det import literal
from hgd_det.errors import UserError
from hgd_det.gate import PARTS, admit
from hgd_det.paths import CONFIGS, read_config

WEIGHTS = ('.pth', '.pt', '.safetensors')


@dataclass(frozen=True)
class Source:
    """A detector that somebody has described: its plain model, and all that its config says besides."""
    name: str
    config: Config
    checkpoint: str | None = None    # what the kind implies

    @property
    def model(self) -> ConfigDict:
        """Of a distilled student, its plain self."""
        model = self.config.model
        return model['student'] if model['type'] == 'Distiller' else model


class Kind(NamedTuple):
    words: str                              # for the message about what is of no kind
    meant: Callable[[str | Mapping], bool]
    read: Callable[[str | Mapping], Source]


def resolve(model: str | Path | Mapping) -> Source:
    """What is meant by ``model=``; the first of :data:`KINDS` that it is."""
    model = str(model) if isinstance(model, Path) else model
    kind = next((kind for kind in KINDS if kind.meant(model)), None)
    if kind is None:
        raise UserError(f'model={model!r} is nothing that is here; give '
                        + '; or '.join(kind.words for kind in KINDS))
    source = kind.read(model)
    model = source.config.get('model')
    if not isinstance(model, Mapping) or 'type' not in model:
        raise UserError(f'the config {source.name} has no model')
    return source


def _of_dict(model: Mapping | Config) -> Source:
    if 'model' not in model:
        model = dict(model=model._cfg_dict if isinstance(model, Config) else dict(model))
    config = model if isinstance(model, Config) else Config(dict(model))
    return Source(str(config.filename or 'teacher config'), config)


def _of_config(path: str) -> Source:
    config = read_config(path)
    return Source(str(config.filename), config)


def _of_run(folder: str) -> Source:
    return _of_checkpoint(newest(folder))


def _of_checkpoint(path: str) -> Source:
    return Source(path, config_of_file(path), path)


def newest(folder: str) -> str:
    """The newest intact checkpoint of a run."""
    path, skipped = checkpoints.newest_intact(folder)
    if path is None:
        raise UserError(f"the teacher's work directory {folder} holds no intact checkpoint"
                        + ''.join(f'\n  {reason}' for reason in skipped))
    return str(path)


def config_of_file(path: str) -> Config:
    """The config that a checkpoint was trained with, of a distillation its student's; through the gate."""
    text = checkpoints.meta_of(checkpoints.load(path), path).get('cfg')
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'{path} does not say which config it was trained with; name that too: '
                        f'dict(model=CONFIG, checkpoint={path!r})')
    values = {part: value for part, value in literal.read(text).items() if part in PARTS}
    model = values.get('model')
    if isinstance(model, Mapping) and model.get('type') == 'Distiller':
        values['model'] = model.get('student')
    return admit(values, path)


def _ends_in(model, endings: tuple[str, ...]) -> bool:
    return isinstance(model, str) and '://' not in model and model.endswith(endings)


#: A new kind is one more row here.
KINDS = (
    Kind('a config, dict(type=..., ...)', lambda model: isinstance(model, (Mapping, Config)), _of_dict),
    Kind("a run's folder, whose newest checkpoint is meant",
         lambda model: isinstance(model, str) and Path(model).is_dir(), _of_run),
    Kind(f"a config's path, which ends in {', '.join(CONFIGS)}",
         lambda model: _ends_in(model, CONFIGS), _of_config),
    Kind(f"a checkpoint that carries its config, which ends in {', '.join(WEIGHTS)}",
         lambda model: _ends_in(model, WEIGHTS), _of_checkpoint))
