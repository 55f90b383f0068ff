"""From a config's path to mmengine's runner, with mistakes in it reported as such."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import inspect
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.dist import init_dist
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch import distributed

from hgd_det.compat.guard import guard_mmengine
from hgd_det.errors import UserError, near
from hgd_det.paths import config_name, find_config, method_name, read_config
from hgd_det.training.deferred import deferred
from hgd_det.training.faults import run_errors
from hgd_det.training.hook_list import list_hooks
from hgd_det.training.mistakes import check_config, need_model, user_errors
from hgd_det.training.replay import ReplayRunner

# top-level names that are read from a config; any other is a variable its own lines have used up
READ = {*inspect.signature(Runner).parameters, 'runner_type', 'model_wrapper_cfg', 'compile',
        'sync_bn', 'find_unused_parameters', 'activation_checkpointing', 'efficient_conv_bn_eval',
        'custom_imports', 'hooks', 'tta_model', 'tta_pipeline', 'input_size', 'generations'}
# what starts the processes of a data-parallel job, and the variable it tells each its number by
LAUNCHERS = {'pytorch': ('torchrun', 'RANK'), 'slurm': ('srun', 'SLURM_PROCID'),
             'mpi': ('mpirun', 'OMPI_COMM_WORLD_LOCAL_RANK')}

TESTS = 'work_dirs/test'     # below it, what is tested logs; a training's folder is its own

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3    # glibc's malloc.h


def load_config(path: str | Path, options: Sequence[str] | Mapping | None = None,
                method: str | None = None) -> Config:
    """A config by its path (see `find_config`), with a method added to it (see `read_config`), changed by
    `key=value` options."""
    path = find_config(path)
    cfg = read_config(path, method)
    _check_names(cfg, path)
    change(cfg, options, path)
    cfg.work_dir = cfg.get('work_dir') or str(default_work_dir(path, method))
    return cfg


def change(cfg: Config, options: Sequence[str] | Mapping | None, path: str | Path) -> None:
    """Apply `key=value` options to a config, which came from this file."""
    options = parse_options(options)
    for key in options:
        note_option(cfg, key)
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, AssertionError, AttributeError, ValueError) as error:
        raise UserError(f'--cfg-options {" ".join(options)} does not fit the config {path}: '
                        f'{error}') from error


def _check_names(cfg: Config, path: Path) -> None:
    """Refuse a top-level name that is nearly one that is read: mmengine would take it for a variable."""
    for name in cfg.keys() - READ:
        if (meant := near(name, READ, 1, 0.85)) and not name.endswith('_pipeline'):
            raise UserError(f'config {path}: nothing reads {name!r}; did you mean {meant[0]!r}? (Give a '
                            'variable of your own another name)')


def default_work_dir(config: str | Path, method: str | None = None, root: str = 'work_dirs') -> Path:
    """`configs/ssd/ssd300_half_voc.py` works in `work_dirs/ssd/ssd300_half_voc`: many share a last name; the
    pair `shapes` with the method `hgd` in `work_dirs/shapes/hgd`."""
    return Path(root, config_name(config), method_name(method) if method else '')


def parse_options(options: Sequence[str] | Mapping | None) -> dict:
    """`['a.b=1', 'c=[x,y]']` as mmengine reads it: `{'a.b': 1, 'c': ['x', 'y']}`."""
    if options is None or isinstance(options, Mapping):
        return dict(options or {})
    for option in options:
        if not re.match(r'[^=\s]+=', option):
            raise UserError(f'--cfg-options {option!r} is not of the form key=value')
    parsed = argparse.Namespace()
    try:
        DictAction(['--cfg-options'], 'options')(argparse.ArgumentParser(), parsed, list(options))
    except AssertionError as error:
        raise UserError(f'--cfg-options: {error}') from error
    except RecursionError as error:  # mmengine's parser waits for a bracket that closed too early
        raise UserError(f'--cfg-options {" ".join(options)}: the brackets do not match') from error
    return parsed.options


def note_option(cfg: Config, key: str) -> None:
    """Warn of an option that cannot have the effect it seems to have."""
    node, parts = cfg._cfg_dict, key.split('.')
    for depth, part in enumerate(parts):
        if isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, Mapping) and part in node:
            node = node[part]
        elif depth == 0 and part in READ:
            return  # a setting the config leaves at its default
        else:
            names = near(part, node if isinstance(node, Mapping) else (), cutoff=0.6)
            if not names and isinstance(node, Mapping) and 'type' in node:
                return  # an argument its class may well have; if not, building it will say so
            meant = '.'.join([*parts[:depth], *names[:1], *parts[depth + 1:]])
            warn(f'--cfg-options {key}: the config has no {".".join(parts[:depth + 1])}, it is '
                 'added' + (f'; did you mean {meant}?' if names else ''))
            return
    if len(parts) == 1 and key not in READ:
        uses = [where for where, value in _leaves(cfg._cfg_dict) if _made_of(value, node)]
        warn(f'--cfg-options {key}: a variable of the config file, already used up where the file '
             'mentions it; setting it now changes nothing'
             + (f'. Set what it went into: {", ".join(uses)}' if uses else ''))


def _leaves(node, where: str = '') -> Iterator[tuple[str, object]]:
    if isinstance(node, (list, tuple)):
        node = dict(enumerate(node))
    for key, value in node.items() if isinstance(node, Mapping) else ():
        name = f'{where}.{key}' if where else str(key)
        if where or key in READ:
            yield name, value
            yield from _leaves(value, name)


def _made_of(value, variable) -> bool:
    if isinstance(variable, str) and variable:
        return isinstance(value, str) and value.startswith(variable)
    return isinstance(variable, (list, tuple)) and value == variable


def warn(message: str) -> None:
    print(f'warning: {message}', file=sys.stderr)


def plain(cfg: Config) -> Config:
    """A copy of the config that builds the detector alone: of a distiller, its student."""
    need_model(cfg)
    cfg = cfg.copy()
    if cfg.model.get('type') == 'Distiller':
        student = ConfigDict(cfg.model.student)
        if 'data_preprocessor' in cfg.model:
            student.setdefault('data_preprocessor', cfg.model.data_preprocessor)
        cfg.model = student
        cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or []
                            if not (isinstance(hook, Mapping) and hook.get('type') == 'DistillHook')]
    return cfg


def build_runner(cfg: Config) -> Runner:
    """mmengine's runner, reading checkpoints through our loader and writing them atomically."""
    # what a config of ours or mmdet's may name, whether or not it imports it
    import hgd_det.registered  # noqa: F401

    check_config(cfg)
    setup_cache_size_limit_of_dynamo()
    guard_mmengine()
    _join_processes(cfg)
    cfg.default_scope = cfg.get('default_scope') or 'mmdet'
    list_hooks(cfg)
    if cfg.get('optim_wrapper'):
        cfg.optim_wrapper = deferred(cfg.optim_wrapper)
    _forget_visualizers()
    if get_device() == 'cpu':
        keep_freed_memory()
    with user_errors():
        return RUNNERS.build(cfg) if 'runner_type' in cfg else ReplayRunner.from_cfg(cfg)


def keep_freed_memory() -> None:
    """On a CPU with glibc: let freed memory stay with the process, as every step takes the same again.

    Otherwise the maps of a step are new memory, which the system has to find and to fill with zeros first: a
    fifth of a step of the shapes, a fifteenth of SSD300's. Tensors above 32 MB are still given back.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):    # other systems have no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 * 2 ** 20)
        mallopt(M_TRIM_THRESHOLD, 2 ** 31 - 1)


def _forget_visualizers(kind: type = Visualizer) -> None:
    """mmengine keeps one visualizer per name and process: a second run would write into the first's files."""
    kind._instance_dict.clear()
    for more in kind.__subclasses__():
        _forget_visualizers(more)


def _join_processes(cfg: Config) -> None:
    """mmengine takes a GPU per process for granted; processes without one speak over gloo."""
    launcher = cfg.get('launcher') or 'none'
    starter, variable = LAUNCHERS.get(launcher, ('', ''))
    if variable and variable not in os.environ:
        raise UserError(f'--launcher {launcher} needs {starter} to start it ({variable} is not set); see '
                        'tools/dist_train.sh')
    if launcher != 'pytorch':
        return
    cpu, start = get_device() == 'cpu', os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')
    if not distributed.is_initialized() and (cpu or start != '0'):
        # a restarting torchrun keeps its store, and in it the addresses of the processes that died
        store, rank, size = next(distributed.rendezvous('env://'))
        options = dict(store=distributed.PrefixStore(f'start {start}', store), rank=rank, world_size=size)
        if cpu:
            distributed.init_process_group('gloo', **options)
        else:
            init_dist(launcher, **(cfg.get('env_cfg') or {}).get('dist_cfg', {}), **options)
    if not cpu:
        return
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None,
                                 broadcast_buffers=False,
                                 find_unused_parameters=cfg.get('find_unused_parameters', False))


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """After the block, which must keep no runner: wait for the other processes, end all threads.

    A thread of the process group that drops a tensor while Python shuts down aborts the process,
    and destroying the group does not end it: the group lives as long as the wrapped model, which
    circular references of the runner keep. After an error nobody is waited for, as the others may
    wait for this process; the launcher ends them.
    """
    with run_errors():
        yield
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
    gc.collect()  # the runner, and with it the group's threads and the data loaders' workers
