"""Checkpoints: nothing in a file is executed, nothing half-written is left behind.

`load` is the only way checkpoints come in. A `.pth` file is a pickle, and a pickle is a program:
`torch.load` without `weights_only=True` runs whatever it says. Accepted are PyTorch's formats,
restricted to tensors, plain Python values and the few types mmengine writes (`safe_types`), and
safetensors. `guard` puts the same loader under mmengine's own loading (pretrained backbones,
resume), whose newer versions fall back to the unrestricted one when they are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import struct
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from hgd_det.errors import UserError
from hgd_det.paths import unsafe
from hgd_det.safe_types import called, safe_types

TRUST_HINT = ('Nothing in it was executed. If you know where the file comes from and trust its '
              'author with your machine, pass --trust-checkpoint')
AGAIN = 'Take another checkpoint, or copy or download this one again'


# ----------------------------------------------------------------------------------------- reading
_trusted = False


def trust_checkpoints(on: bool) -> None:
    """What `load` does where `trust` is not given: the command line's `--trust-checkpoint`."""
    global _trusted
    _trusted = on


def trusted() -> bool:
    return _trusted


def load(path: str | os.PathLike, *, trust: bool | None = None, map_location='cpu') -> dict:
    """The checkpoint as a dict. With `trust=True` any type is let in: the file may run any code."""
    trust = _trusted if trust is None else trust
    path = Path(path).expanduser()
    if path.is_dir():
        raise UserError(f'checkpoint {path} is a folder; give the .pth or .safetensors file inside')
    if not path.exists():
        beside = sorted(other.name for other in path.parent.glob('*')
                        if other.suffix in ('.pth', '.pt', '.safetensors'))
        raise UserError(f'checkpoint {path} does not exist; '
                        + (f'beside it there is {", ".join(beside[:8])}' if beside
                           else f'nor does any in {path.parent}'))
    if path.stat().st_size == 0:
        raise UserError(f'checkpoint {path} is empty (0 bytes). {AGAIN}')
    if path.suffix == '.safetensors':
        content = _load_safetensors(path)
    else:
        content = _load_torch(path, trust, map_location)
    if not isinstance(content, Mapping):
        raise UserError(f'checkpoint {path} holds a {type(content).__name__}, not a dict of '
                        'weights; save model.state_dict() instead')
    return content


def _load_torch(path: Path, trust: bool, map_location):
    size = f'{path.stat().st_size:,} bytes'
    with open(path, 'rb') as file:
        if file.read(2) == b'PK':
            _check_zip(path)
    try:
        with safe_types(), warnings.catch_warnings():
            warnings.simplefilter('ignore', FutureWarning)
            return torch.load(path, map_location=map_location, weights_only=not trust)
    except UserError as error:  # from the stand-ins of `safe_types`
        raise UserError(f'checkpoint {path} was refused: {error}. {TRUST_HINT}') from None
    except (pickle.UnpicklingError, EOFError, RuntimeError, OSError, ValueError, LookupError,
            TypeError, AttributeError, AssertionError, ImportError, MemoryError, struct.error) as error:
        # a damaged or hostile pickle can fail inside the unpickler in any of these ways
        text = str(error)
        if found := (re.search(r'GLOBAL ([\w.]+)', text)
                     or re.search(r"<(?:class|(?:built-in )?function) '?([\w.]+)", text)):
            # torch writes the names Python 2 had: commands for subprocess
            module, _, name = found[1].rpartition('.')
            name = f'{IMPORT_MAPPING.get(module, module) or "builtins"}.{name}'
            raise UserError(f'checkpoint {path} was refused: it contains {name}, which is neither '
                            f'a tensor nor a plain value. {TRUST_HINT}') from None
        if name := called(path):
            raise UserError(f'checkpoint {path} was refused: it is a bare pickle that contains {name}. '
                            f'{TRUST_HINT}') from None
        # torch's own advice to switch its protection off is left out
        text = text.rpartition('WeightsUnpickler error: ')[2].strip()
        reason = text.splitlines() or [type(error).__name__]
        raise UserError(f'checkpoint {path} ({size}) cannot be read: it is truncated, damaged or '
                        f'not a checkpoint of PyTorch ({reason[0][:200]}). {AGAIN}') from error


def _check_zip(path: Path) -> None:
    """Name truncation, damage and other archives before torch sees it."""
    names = check_archive(path)
    if not any(name.endswith('/data.pkl') for name in names):
        raise UserError(f'{path} is a zip archive, but not a checkpoint of PyTorch (no data.pkl inside)')
    if any(name.endswith('/constants.pkl') for name in names):
        raise UserError(f'{path} is a TorchScript program, not a checkpoint; give the weights it was made '
                        'from')


def check_archive(path: Path) -> list[str]:
    """The members' names of a zip archive that is sound: whole, as torch writes them, and no larger unpacked
    than it is."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                # torch.save never compresses; a small compressed file could unpack to any size
                raise UserError(f'{path} is a compressed archive; checkpoints are not compressed, '
                                'unpack it first')
            if sum(member.file_size for member in members) > size:
                raise UserError(f'{path} claims to hold more than its {size:,} bytes: parts of it overlap')
            if escaping := next(filter(unsafe, names), None):
                raise UserError(f'{path} was refused: its part {escaping!r} lies outside of it')
            if twice := [name for name, times in Counter(names).items() if times > 1]:
                raise UserError(f'{path} was refused: it holds {twice[0]!r} twice')
            if broken := archive.testzip():
                raise UserError(f'checkpoint {path} ({size:,} bytes) is damaged: wrong checksum in its '
                                f'part {broken!r}. {AGAIN}')
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError,
            struct.error) as error:
        raise UserError(f'checkpoint {path} ({size:,} bytes) is truncated or damaged: {error}. '
                        f'{AGAIN}') from error
    return names


def _load_safetensors(path: Path) -> dict:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f'{path} needs the safetensors package: pip install safetensors') from None
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f'checkpoint {path} is truncated or damaged: {error}. {AGAIN}') from error


def sha256(path: str | os.PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------- weights
def student_state_dict(checkpoint: Mapping) -> OrderedDict:
    """The plain detector's weights: without the terms' (`distill.`), without a wrapper's prefix."""
    weights = _weights(checkpoint)
    kept = OrderedDict((key, value) for key, value in _tensors(weights) if not key.startswith('distill.'))
    if not kept:
        raise UserError('the checkpoint holds no weights; its keys are '
                        f'{", ".join(map(str, list(weights)[:8])) or "none"}')
    if hasattr(weights, '_metadata'):  # lets modules convert weights of their own earlier versions
        kept._metadata = weights._metadata
    return kept


def peer_state_dict(checkpoint: Mapping, term: str) -> OrderedDict:
    """The weights of the detector that a term trained beside the student (`distill.TERM.peer.`)."""
    weights, beside = _weights(checkpoint), checkpoint.get('distill')
    peers: dict[str, OrderedDict] = {}
    for part in (weights, beside if isinstance(beside, Mapping) else {}):
        for key, value in _tensors(part):
            if found := re.fullmatch(r'distill\.(\w+)\.peer\.(.+)', key):
                peers.setdefault(found[1], OrderedDict())[found[2]] = value
    if term not in peers:
        raise UserError(f'the checkpoint holds no peer of a term {term!r}; '
                        + (f'it holds that of {", ".join(map(repr, peers))}' if peers else
                           'it holds none at all. DML trains one, and every checkpoint of its run has it; an '
                           'exported student does not'))
    prefix, kept = f'distill.{term}.peer.', peers[term]
    if hasattr(weights, '_metadata'):
        kept._metadata = OrderedDict((key[len(prefix):], value) for key, value in weights._metadata.items()
                                     if f'{key}.'.startswith(prefix))
    return kept


def _weights(checkpoint: Mapping) -> Mapping:
    return next((checkpoint[key] for key in ('state_dict', 'model')
                 if isinstance(checkpoint.get(key), Mapping)), checkpoint)


def _tensors(weights: Mapping) -> Iterator[tuple[str, torch.Tensor]]:
    """The named tensors among the values, without a wrapper's prefix."""
    for key, value in weights.items():
        if isinstance(key, str) and isinstance(value, torch.Tensor):
            yield key.removeprefix('module.'), value


def class_names(checkpoint: Mapping) -> tuple[str, ...] | None:
    """The classes that the run recorded; a file of another tool may hold anything in their place."""
    found = checkpoint
    for key in ('meta', 'dataset_meta', 'classes'):
        found = found.get(key) if isinstance(found, Mapping) else None
    found = (found,) if isinstance(found, str) else found
    named = isinstance(found, (list, tuple)) and all(isinstance(name, str) for name in found)
    return tuple(found) or None if named else None


@dataclass(frozen=True)
class Difference:
    """How weights differ from a model's: keys it lacks, does not know, or has in another shape."""

    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshaped)

    def __str__(self) -> str:
        parts = []
        for name in ('missing', 'unexpected', 'misshaped'):
            if keys := getattr(self, name):
                more = f', and {len(keys) - 8} more' if len(keys) > 8 else ''
                parts.append(f'{len(keys)} {name}: {", ".join(keys[:8])}{more}')
        return '; '.join(parts)


def compare(own: Mapping, given: Mapping) -> Difference:
    """How `given` weights differ from a model's `own`; BatchNorm's step counter may be missing."""
    return Difference(
        [key for key in own if key not in given and not key.endswith('num_batches_tracked')],
        [key for key in given if key not in own],
        [f'{key} ({_shape(value)} given, {_shape(own[key])} wanted)' for key, value in given.items()
         if key in own and value.shape != own[key].shape])


def load_into(model: nn.Module, state_dict: Mapping, *, what: str,
              strict: bool = True) -> Difference:
    """Copy weights into the model; return what did not fit, or with `strict` refuse it.

    `what` names the weights in the message. After an error the model holds a part of them and must
    not be used.
    """
    own = model.state_dict()
    misshaped = compare(own, state_dict).misshaped
    fitting = OrderedDict((key, value) for key, value in state_dict.items()
                          if key not in own or value.shape == own[key].shape)
    if hasattr(state_dict, '_metadata'):
        fitting._metadata = state_dict._metadata
    missing, unexpected = model.load_state_dict(fitting, strict=False)
    # asking torch after the copy, not before, lets modules convert the keys of their own earlier
    # versions
    missing = [key for key in missing
               if key not in state_dict and not key.endswith('num_batches_tracked')]
    difference = Difference(missing, list(unexpected), misshaped)
    if strict and difference:
        raise UserError(f'{what} does not fit the model: {difference}. Give the checkpoint of this '
                        'very config, or the config this checkpoint was trained with')
    return difference


def _shape(tensor: torch.Tensor) -> str:
    return 'x'.join(map(str, tensor.shape)) or 'scalar'


# ----------------------------------------------------------------------------------------- writing
@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator:
    """A binary file that takes the place of `path` if the block ends well; else nothing is left."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    # the new name survives a power cut too, where the file system can promise it
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def atomic_save(obj, path: str | os.PathLike) -> None:
    with replacing(path) as file:
        torch.save(obj, file)


def atomic_write(data: bytes | str, path: str | os.PathLike) -> None:
    with replacing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


# ----------------------------------------------------------------------------------------- resuming
def newest_intact(folder: str | os.PathLike) -> tuple[Path | None, list[str]]:
    """The newest checkpoint in a folder that a run can resume from, and why newer were skipped."""
    folder = Path(folder)
    # the best checkpoint is kept without the optimizer's state
    candidates = {path for path in folder.glob('*_*.pth') if not path.name.startswith('best_')}
    with contextlib.suppress(OSError, ValueError):
        # may lie elsewhere, see CheckpointHook's out_dir
        last = Path((folder / 'last_checkpoint').read_text().strip())
        if last.is_file():
            candidates = {path for path in candidates if not path.samefile(last)} | {last}
    skipped = []
    for path in sorted(candidates, key=_age, reverse=True):
        try:
            content = load(path)
        except UserError as error:
            skipped.append(str(error))
            continue
        if {'optimizer', 'message_hub', 'meta'} <= content.keys():
            return path, skipped
        skipped.append(f'checkpoint {path} holds weights only, without the state of the optimizer')
    return None, skipped


def _age(path: Path) -> tuple[int, int]:
    return path.stat().st_mtime_ns, int(re.search(r'(\d*)$', path.stem)[1] or 0)
