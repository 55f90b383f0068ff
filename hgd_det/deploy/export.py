"""Writes a student in the forms that others load, with a card that says what it is."""
from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config

from hgd_det import __version__
from hgd_det.checkpoint import atomic_save, atomic_write, replacing, sha256
from hgd_det.compat import versions
from hgd_det.deploy import card
from hgd_det.deploy.graph import DetectorGraph
from hgd_det.deploy.onnx_file import KEY, program, write
from hgd_det.deploy.student import Student
from hgd_det.errors import UserError
from hgd_det.outputs import keep_originals

FORMATS = {'pth': '.pth', 'safetensors': '.safetensors', 'onnx': '.onnx', 'torch': '.pt2'}
RUN_ONLY = ('load_from', 'resume', 'work_dir', 'launcher')


@dataclass(frozen=True)
class Exported:
    """The files of one export, the model's first."""
    files: dict[str, Path]      # by format
    config: Path
    card: Path
    facts: dict


def stem_of(out: str | Path, formats: Sequence[str]) -> tuple[Path, list[str]]:
    """Where to write: a file names its format by its suffix, anything else is a folder."""
    out = Path(out)
    by_suffix = {suffix: name for name, suffix in FORMATS.items()}
    if out.suffix in by_suffix and not out.is_dir():
        only = by_suffix[out.suffix]
        if formats and list(formats) != [only]:
            raise UserError(f'{out} is a file of the format {only}, but --format says '
                            f'{" ".join(formats)}; give a folder to write several')
        return out.with_suffix(''), [only]
    return out / 'model', list(formats) or ['pth']


def export(student: Student, out: str | Path, formats: Sequence[str] = (), *, with_nms: bool = False,
           half: bool = False, force: bool = False) -> Exported:
    """Write the student's `formats` (default: pth), its config and its card; over files that exist with
    `force` only."""
    stem, formats = stem_of(out, formats)
    keep_originals([stem.with_suffix(suffix) for suffix in
                    (*(FORMATS[name] for name in formats), '.py', '.md', '.json')],
                   student.reads, force=force)
    stem.parent.mkdir(parents=True, exist_ok=True)
    cfg = standalone(student)
    facts = card.facts(student, half)
    meta = dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=list(student.classes)),
                hgd_det_version=__version__, **{KEY: facts})
    files = {name: stem.with_suffix(FORMATS[name]) for name in formats}
    if {'onnx', 'torch'} & files.keys():
        graph = DetectorGraph(student, half=half)
        traced = program(graph)
        graph_meta = dict(facts, settings=graph.settings.as_dict())
    for name, path in files.items():
        if name == 'pth':
            atomic_save(dict(state_dict=weights(student, half), meta=meta), path)
        elif name == 'safetensors':
            _write_safetensors(weights(student, half), meta, path)
        elif name == 'onnx':
            write(traced, path, graph_meta, graph.settings if with_nms else None)
        else:
            with replacing(path) as file:
                torch.export.save(traced, file, extra_files={f'{KEY}.json': json.dumps(graph_meta)})
    config = stem.with_suffix('.py')
    atomic_write(f'# The student of {ascii(student.path.name)[1:-1]}, by hgd-det export {__version__}\n'
                 + cfg.pretty_text, config)
    facts['files'] = {path.name: dict(format=name, bytes=path.stat().st_size, sha256=sha256(path))
                      for name, path in files.items()}
    if 'onnx' in files:
        facts['files'][files['onnx'].name]['nms'] = with_nms
    done = Exported(files, config, stem.with_suffix('.md'), facts)
    write_card(done)
    return done


def write_card(done: Exported) -> None:
    atomic_write(card.text(done.facts), done.card)
    atomic_write(json.dumps(done.facts | dict(versions=versions()), indent=2) + '\n',
                 done.card.with_suffix('.json'))


def standalone(student: Student) -> Config:
    """The student's config without bases, distillation and what belongs to one run only."""
    values = {key: value for key, value in student.config.to_dict().items() if key not in RUN_ONLY}
    values['custom_imports'] = dict(imports=['hgd_det.registered'], allow_failed_imports=False)
    if student.taught:
        values['taught'] = dict(student.taught)
    return Config(values)


def weights(student: Student, half: bool = False) -> OrderedDict[str, torch.Tensor]:
    """The plain student's state dict; `half` stores what float16 can hold in it."""
    found = OrderedDict()
    for key, value in student.detector.state_dict().items():
        value = value.detach().cpu().contiguous().clone()
        if half and value.dtype == torch.float32 and value.half().isfinite().all():
            value = value.half()
        found[key] = value
    return found


def _write_safetensors(state: dict, meta: dict, path: Path) -> None:
    try:
        from safetensors.torch import save
    except ImportError:
        raise UserError('this format needs the safetensors package: pip install safetensors') from None
    atomic_write(save(dict(state), {'hgd_det': json.dumps(meta)}), path)
