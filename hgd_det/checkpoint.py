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
import json
import os
import pickle
import re
import struct
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

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
            check_archive(path, _is_checkpoint)
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


def _is_checkpoint(path: Path, names: list[str]) -> None:
    if not any(name.endswith('/data.pkl') for name in names):
        raise UserError(f'{path} is a zip archive, but not a checkpoint of PyTorch (no data.pkl inside)')
    if any(name.endswith('/constants.pkl') for name in names):
        raise UserError(f'{path} is a TorchScript program, not a checkpoint; give the weights it was made '
                        'from')


def check_archive(path: Path, examine: Callable[[Path, list[str]], None]) -> None:
    """Refuse a zip archive that is not whole, not as torch writes it, or larger unpacked than it is.

    `examine` refuses it by the names of its parts; it comes first.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            examine(path, names)
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
    except UserError:
        raise
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError, LookupError,
            OverflowError, struct.error) as error:
        # a damaged name of a part is no text, a damaged date no number
        raise UserError(f'checkpoint {path} ({size:,} bytes) is truncated or damaged: {error}. '
                        f'{AGAIN}') from error


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


def meta_of(content: Mapping, path: str | os.PathLike) -> dict:
    """What the checkpoint, loaded from `path`, says of itself; of safetensors, in the file's header."""
    if Path(path).suffix != '.safetensors':
        return content['meta'] if isinstance(content.get('meta'), Mapping) else {}
    from safetensors import safe_open
    with safe_open(path, 'pt') as file:
        text = (file.metadata() or {}).get('hgd_det')
    try:
        meta = json.loads(text or '{}')
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path}: what hgd-det export noted in it is damaged: {error}') from None
    return meta if isinstance(meta, dict) else {}


def sha256(path: str | os.PathLike) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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
KINDS = ('epoch', 'iter')     # in the names that runs give unless their config says otherwise


def run_checkpoints(folder: str | os.PathLike) -> list[Path]:
    """What a run may have saved in its folder to go on from, the highest number of each kind of name first.

    The folder's own files alone: a pointer in it (`last_checkpoint`) may be that of a run it was copied from.
    """
    # the best checkpoint is kept without the optimizer's state
    found = (path for path in Path(folder).glob('*_*.pth') if not path.name.startswith('best_'))
    return sorted(found, key=lambda path: (_named(path)[0] not in KINDS, _named(path)[0], -_named(path)[1]))


def newest_intact(folder: str | os.PathLike) -> tuple[Path | None, list[str]]:
    """The newest checkpoint in a folder that a run can resume from, and why newer were skipped."""
    path, _, skipped = newest(folder)
    return path, skipped


def newest(folder: str | os.PathLike) -> tuple[Path | None, dict, list[str]]:
    """As `newest_intact`, with its content. The newest is that of the most iterations, by what the file says;
    when it was last touched does not count, since copying a folder changes that."""
    best, skipped, closed = None, [], set()
    for path in run_checkpoints(folder):
        kind, number = _named(path)
        if kind in closed or (best and kind not in KINDS):
            continue
        try:
            content = load(path)
        except UserError as error:
            skipped.append(str(error))
            continue
        meta = content.get('meta')
        if not {'optimizer', 'message_hub'} <= content.keys() or not isinstance(meta, Mapping):
            skipped.append(f'checkpoint {path} holds weights only, without the state of the optimizer')
            continue
        inside = meta.get('epoch' if kind == 'epoch' else 'iter')
        # a copy under a higher number than its own may hide what lies further down
        if kind not in KINDS or (isinstance(inside, int) and inside >= number):
            closed.add(kind)
        if best is None or _iterations(content) > _iterations(best[1]):
            best = path, content
    if best is None and not skipped:
        with contextlib.suppress(OSError, ValueError):
            last = Path((Path(folder) / 'last_checkpoint').read_text().strip())
            skipped.append(f'{folder} has no checkpoint of its own; its last_checkpoint names {last}, and is '
                           'not followed out of the folder: give that file itself')
    return (*best, skipped) if best else (None, {}, skipped)


def _named(path: Path) -> tuple[str, int]:
    """`iter_12.pth` as `('iter', 12)`; -1 without a number."""
    found = re.fullmatch(r'(.*?)_?(\d*)', path.stem)
    return found[1], int(found[2] or -1)


def _iterations(content: Mapping) -> int:
    done = content['meta'].get('iter')
    return done if isinstance(done, int) else -1
