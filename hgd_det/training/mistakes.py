"""What is wrong with a config, in words: what can be seen in it, and what comes up while it is built."""
from __future__ import annotations

import contextlib
import inspect
import re
import traceback
from collections.abc import Iterator, Mapping

from mmdet import registry
from mmengine.config import Config
from mmengine.registry import Registry
from torch.utils.data import DataLoader

from hgd_det.errors import RunError, UserError, near
from hgd_det.training.faults import NO_SPACE

# settings that are whole numbers, and the least of each
NUMBERS = {'train_cfg.max_iters': 1, 'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1,
           **{f'{part}_dataloader.{name}': least for part in ('train', 'val', 'test')
              for name, least in (('batch_size', 1), ('num_workers', 0))}}
SECTIONS = ('optim_wrapper', 'default_hooks', 'env_cfg',
            *(f'{part}_{rest}' for part in ('train', 'val', 'test') for rest in ('dataloader', 'cfg')))
MORE = 'HGD_DET_TRACEBACK=1 shows where'


def check_config(cfg: Config) -> None:
    """Refuse what mmengine would stumble over without saying which setting it was."""
    need_model(cfg)
    for name in SECTIONS:
        value = cfg.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise UserError(f'{name}={value!r}; write dict(...)')
    for key, least in NUMBERS.items():
        section, name = key.split('.')
        value = (cfg.get(section) or {}).get(name)
        if value is not None and (type(value) is not int or value < least):
            raise UserError(f'{key}={value!r}; give a whole number from {least} up')
    hooks = cfg.get('custom_hooks') or []
    if not isinstance(hooks, (list, tuple)) or not all(isinstance(hook, Mapping) for hook in hooks):
        raise UserError(f'custom_hooks={hooks!r}; write a list, [dict(type=...), ...]')
    kind = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('type')
    if isinstance(kind, str) and registry.OPTIMIZERS.get(kind) is None:
        raise UserError(_no_such('optimizer', kind))
    for part in ('train', 'val', 'test'):
        names = [f'{part}_{rest}' for rest in ('dataloader', 'cfg')]
        names.append('optim_wrapper' if part == 'train' else f'{part}_evaluator')
        absent = [name for name in names if cfg.get(name) is None]
        if absent and len(absent) < len(names):
            raise UserError(f'the config has no {" and no ".join(absent)}; {", ".join(names)} are needed '
                            'together, or none of them')


def need_model(cfg: Config) -> None:
    model = cfg.get('model')
    if not isinstance(model, Mapping) or 'type' not in model:
        raise UserError(f"{cfg.filename or 'the config'} has no model=dict(type=..., ...); it says "
                        f'model={model!r}')
    student = model.get('student')
    if model['type'] == 'Distiller' and not (isinstance(student, Mapping) and 'type' in student):
        raise UserError(f'model.student={student!r}; write the model of a detector that trains alone, '
                        'dict(type=..., ...)')


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Mistakes in a config that come up while something is built from it, as `UserError`."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f'{error.filename or error} does not exist. Paths in configs count from '
                        'the working folder; change them with --cfg-options') from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            raise RunError(f'{error.filename or "a file of the run"} could not be written: {error.strerror}. '
                           'Free space; the same command with --resume goes on from the newest') from error
        text = _text(error)
        if found := re.search(r'(\w+) is not in the (?:\S+::)?([\w ]+?) registry', text):
            raise UserError(_no_such(found[2], found[1])) from error
        entry = _entry(error)
        if entry is None:  # nothing was being built: a mistake of ours
            raise
        raise UserError(_explain(error, text, *entry)) from error


def _text(error: BaseException) -> str:
    """What an error says, without what some versions of mmengine put before it."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return re.sub(r'^["\']?(class `\w+` in \S+: )+', '', text).strip()


def _entry(error: BaseException) -> tuple[object, object] | None:
    """The class that mmengine was building when the error arose, and its part of the config."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        known = frame.f_locals
        if frame.f_code.co_name == 'build_from_cfg':
            found = known.get('obj_cls'), known.get('args', known.get('cfg'))
        elif frame.f_code.co_name == 'build_dataloader':
            found = DataLoader, known.get('dataloader_cfg', known.get('dataloader'))
    return found


def _explain(error: Exception, text: str, kind, given) -> str:
    if kind is None:
        return f"a part of the config is {_short(given)}; write dict(type=..., ...)"
    name = getattr(kind, '__name__', str(kind))
    if found := re.search(r"__init__\(\) (got an unexpected keyword argument '(\w+)')", text):
        meant = near(found[2], _accepted(kind))
        return (f'the config of {name} is wrong: it {found[1]}'
                + (f'; did you mean {" or ".join(meant)}?' if meant else ''))
    if found := re.search(r'__init__\(\) (missing \d+ required.*)', text):
        return f'the config of {name} is wrong: it {found[1]}'
    reason = f'{type(error).__name__}: {text.splitlines()[0][:300]}' if text else type(error).__name__
    look = '. `hgd-det data check CONFIG` reads every file' if name in registry.DATASETS else ''
    return f'{name} cannot be made from its config, {_short(given)} ({reason}; {MORE}){look}'


def _accepted(kind) -> list[str]:
    """Names of arguments, also of those handed on to the classes above."""
    return [name for one in inspect.getmro(kind) if '__init__' in vars(one) and one is not object
            for name in inspect.signature(one.__init__).parameters] if inspect.isclass(kind) else []


def _short(given) -> str:
    """The plain values of a part of a config: what lies deeper was built already."""
    if not isinstance(given, Mapping):
        return repr(given)[:200]
    plain = [f'{key}={value!r}'[:80] for key, value in given.items() if _plain(value)]
    return ', '.join(plain)[:400] or 'without values'


def _plain(value) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return value is None or isinstance(value, (str, int, float))


def _no_such(kind: str, name: str) -> str:
    meant = near(name, _registered(kind), cutoff=0.6)
    return (f'the config asks for the {kind} {name!r}, which does not exist'
            + (f'; near names: {", ".join(meant)}' if meant else ''))


def _registered(kind: str) -> list[str]:
    levels = [value for value in vars(registry).values()
              if isinstance(value, Registry) and value.name == kind]
    levels += [level.parent for level in levels if level.parent]
    return [name for level in levels for name in level.module_dict]
