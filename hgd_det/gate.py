"""The one gate for configs that came in a file: a checkpoint's, an exported model's, a run's folder's.

mmengine builds what a config names, and names reach far: a registry that does not know a name imports it
(`type='os.system'`), `_scope_` and `default_scope` import a package, `nms.type` is evaluated as Python,
a teacher's config is a program that is run, an annotation file that ends in `.pkl` is a pickle. The user's
own config may do all that. One that came in a file passes here first, and is data: plain values, and of
names those that were registered before the file was read.
"""
from __future__ import annotations

import contextlib
import keyword
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path

from mmengine.config import Config

from hgd_det.checkpoint import trusted
from hgd_det.compat.imports import no_imports
from hgd_det.errors import UserError
from hgd_det.paths import ROOT

DEPTH, VALUES, LETTERS = 40, 200_000, 100_000    # of a config, in all, and of one string
SCOPES = ('mmdet', 'mmengine', None)
# what mmcv.ops.nms.batched_nms may be told to call, and what a RoI extractor may take from mmcv.ops
NMS, ROI = ('nms', 'soft_nms', 'nms_rotated'), ('RoIAlign', 'RoIPool', 'DeformRoIPool', 'RoIAlignRotated')

# Registries by the part of a config that is built from them. Parts that are not named here stay outside.
MODEL = ('MODELS', 'TASK_UTILS', 'WEIGHT_INITIALIZERS')
DATA = ('DATASETS', 'TRANSFORMS', 'DATA_SAMPLERS', 'FUNCTIONS')
NEEDED = {'model': MODEL, 'test_dataloader': DATA, 'test_pipeline': ('TRANSFORMS',)}
OTHERS = {
    'test_evaluator': ('METRICS', 'EVALUATOR'), 'val_evaluator': ('METRICS', 'EVALUATOR'),
    'train_dataloader': DATA, 'val_dataloader': DATA,
    'train_pipeline': ('TRANSFORMS',), 'val_pipeline': ('TRANSFORMS',),
    'train_cfg': ('LOOPS',), 'val_cfg': ('LOOPS',), 'test_cfg': ('LOOPS',),
    'optim_wrapper': ('OPTIM_WRAPPERS', 'OPTIMIZERS', 'OPTIM_WRAPPER_CONSTRUCTORS'),
    'param_scheduler': ('PARAM_SCHEDULERS',), 'log_processor': ('LOG_PROCESSORS',),
    'default_hooks': ('HOOKS',), 'custom_hooks': ('HOOKS', 'TRANSFORMS'),
    **dict.fromkeys(('taught', 'input_size', 'default_scope', 'log_level', 'randomness', 'auto_scale_lr',
                     'env_cfg', 'find_unused_parameters', 'sync_bn', 'generations'), ())}
PARTS = {**NEEDED, **OTHERS}

# Registered, and yet no data: they run configs, fetch or unpickle files, evaluate text, run programs, write
REFUSED = {
    'KnowledgeDistillationSingleStageDetector', 'LAD', 'BertModel', 'ATSSVLFusionHead', 'AppearanceFreeLink',
    'CameraMotionCompensation', 'RandomSamplingNegPos', 'Albu', 'RFSearchHook', 'ProfilerHook',
    'NPUProfilerHook', 'DumpResults', 'DumpDetResults', 'DumpODVGResults', 'DumpProposals',
    'COCOCaptionMetric', 'CULaneMetric', 'CityScapesMetric', 'CocoPanopticMetric', 'MOTChallengeMetric',
    'SemSegMetric', 'CrowdHumanMetric', 'CrowdHumanDataset', 'OpenImagesDataset',
    'OpenImagesChallengeDataset', 'DSDLDetDataset', 'ODVGDataset', 'ReIDDataset', 'V3DetDataset'}
# Settings that name a place to write to, or a file that is unpickled; they must be empty
EMPTY = {'outfile_prefix', 'out_file_path', 'outfile_path', 'collect_dir', 'out_dir', 'work_dir', 'save_dir',
         'test_out_dir', 'json_trace_path', 'proposal_file'}
BACKENDS = ('disk', 'local', 'cv2', 'pillow', 'turbojpeg', 'tifffile', 'nccl', 'gloo', None)
WEIGHTS = ('checkpoint', 'pretrained', 'teacher_ckpt')
# Files that are programs to who reads them by their name: Python, pickles, YAML with mmengine's loader
PROGRAMS = re.compile(r'\.(py|pyc|pkl|pickle|ya?ml|so|pth|pt|bin|npy|npz)\s*$', re.IGNORECASE)
HINT = ('Nothing was built from it. Give the config file itself, as a program of your own (--config CONFIG, '
        'or in place of "auto"), or, if you trust the maker of the file with your machine, pass '
        '--trust-checkpoint')
KEY = re.compile(r"[^'\"\\{}\x00-\x1f]*")    # may be written into a config again


class Refused(UserError):
    """A config out of a file asks for more than data."""


class Admitted(Config):
    """A config that passed the gate."""


def admit(values: Mapping, what: str | Path) -> Admitted:
    """The config out of the file `what`, of which everything may be built.

    What detectors are built, fed and judged by must pass; other parts are left out where they do not, and so
    is whatever no part of this toolkit reads. No file of weights is named in it any more: the weights are
    those that came with it. With `--trust-checkpoint` all is let in as it is.
    """
    if trusted():
        return Config({part: values[part] for part in PARTS if part in values})
    if not isinstance(values.get('model'), Mapping):
        raise UserError(f'the config inside {what} has no model; give the config: --config CONFIG')
    try:
        scope = values.get('default_scope')
        if scope not in SCOPES:
            raise _Foreign('default_scope', f'{scope!r:.80}, which would be imported')
        admitted = {part: _Part(registries).passed(values[part], part)
                    for part, registries in NEEDED.items() if part in values}
    except _Foreign as found:
        raise Refused(f'the config inside {what} was refused: {found}. {HINT}') from None
    for part, registries in OTHERS.items():
        if part in values:
            with contextlib.suppress(_Foreign):    # no verb builds these from a file
                admitted[part] = _Part(registries).passed(values[part], part)
    admitted['model'] = _without_files(admitted['model'])
    return Admitted(admitted)


def _without_files(model):
    """A model's config that names no file of weights: whoever asks for initial weights draws them."""
    if isinstance(model, Mapping):
        return {key: None if _pretrained(value) or key in WEIGHTS and isinstance(value, str) else
                _without_files(value) for key, value in model.items()}
    if isinstance(model, (list, tuple)):
        return type(model)(_without_files(each) for each in model if not _pretrained(each))
    return model


def _pretrained(value) -> bool:
    return isinstance(value, Mapping) and value.get('type') == 'Pretrained'


class _Foreign(Exception):
    """Where in the config something is asked for that is no data, in words."""

    def __init__(self, where: str, what: str):
        super().__init__(f'{where} asks for {what}')


class _Part:
    """One part of a config, which is copied value by value; what is not known is an error."""

    def __init__(self, registries: Iterable[str]):
        self.registries, self.left = tuple(registries), VALUES

    @cached_property
    def known(self) -> set[str]:
        return names(*self.registries) - REFUSED

    def passed(self, value, where: str, depth: int = 0, key: str = '', parent: str = ''):
        """A copy of the value, which stands under `key`, and that under `parent`."""
        self.left -= 1
        if depth > DEPTH or self.left < 0:
            raise _Foreign(where, f'more than {VALUES:,} values, or {DEPTH} levels of them')
        if isinstance(value, Mapping):
            return self._mapping(value, where, depth, key, parent)
        if type(value) in (list, tuple):
            return type(value)(self.passed(item, f'{where}[{number}]', depth + 1, key, parent)
                               for number, item in enumerate(value))
        if isinstance(value, str):
            return self._text(str(value), where, key)
        if type(value) not in (int, float, bool, type(None)):
            raise _Foreign(where, f'a {type(value).__name__}, which is no plain value')
        if isinstance(value, int) and abs(value) >= 2 ** 63:
            raise _Foreign(where, 'a number of more than 64 bits')
        return value

    def _mapping(self, value: Mapping, where: str, depth: int, key: str, parent: str) -> dict:
        passed = {}
        for name, inner in value.items():
            at = f'{where}.{name}'
            if type(name) is not int and not (isinstance(name, str) and KEY.fullmatch(name)
                                              and not keyword.iskeyword(name)):
                raise _Foreign(where, f'the key {name!r:.80}')
            if str(name).startswith('_'):    # of mmengine: bases, scopes, deletions
                if name != '_scope_' or inner not in SCOPES:
                    raise _Foreign(at, f'{inner!r:.80}')
                continue    # every name is found without it
            if name in EMPTY and inner not in (None, '', False):
                raise _Foreign(at, f'{inner!r:.80}, a place to write to, or a file of another kind')
            if name == 'backend' and inner not in BACKENDS:
                raise _Foreign(at, f'{inner!r:.80}, which reads from elsewhere')
            passed[name] = self._type(inner, at, key, parent) if name == 'type' else \
                self.passed(inner, at, depth + 1, str(name), key)
        return passed

    def _type(self, name, where: str, key: str, parent: str) -> str:
        """The plain name of what is built; `key` is that of the mapping which `name` is the type of."""
        if 'nms' in key.lower():
            known = NMS
        elif key == 'roi_layer':
            known = ROI
        else:
            known = names('TERMS') if parent == 'terms' else self.known
        if type(name) is not str or name not in known:
            raise _Foreign(where, f'{name!r:.80}, which is not the plain name of something registered '
                                  'for this part of a config that is no more than data')
        return name

    def _text(self, text: str, where: str, key: str) -> str:
        if len(text) > LETTERS:
            raise _Foreign(where, f'a text of {len(text):,} letters')
        if '{{' in text:    # mmengine fills it in, where the config is written down and read again
            raise _Foreign(where, f'{text!r:.80}, a template')
        if key == 'warp_mode' or 'nms' in key.lower() and text not in NMS:
            raise _Foreign(where, f'{text!r:.80}, which would be evaluated')
        if self.registries == MODEL and key in WEIGHTS:
            return text    # see `without_files`
        if self.registries and PROGRAMS.search(text):
            if self.registries == MODEL and (own := _ours(text)):
                return own
            raise _Foreign(where, f'the file {text!r:.200}, which would be run or unpickled')
        if self.registries == DATA and '://' in text:
            raise _Foreign(where, f'the address {text!r:.200}')
        return text


def _ours(config: str) -> str | None:
    """The path of one of the project's own configs, such as a run's teacher has."""
    with contextlib.suppress(OSError, ValueError):
        path = (ROOT / config).resolve()
        if path.suffix == '.py' and path.is_relative_to(ROOT / 'configs') and path.is_file():
            return str(path)
    return None


def names(*registries: str) -> set[str]:
    """What is registered under these names of registries: mmengine's, mmdet's, ours. No file decides it."""
    return {name for registry in _registries(registries) for name in registry.module_dict}


@cache
def _registries(names: tuple[str, ...]) -> list:
    from mmdet import registry as lower
    from mmengine import registry as upper

    import hgd_det.registered  # noqa: F401
    from hgd_det.distill.registry import TERMS

    found = [getattr(module, name) for name in names for module in (upper, lower) if hasattr(module, name)]
    found += [TERMS] * ('TERMS' in names)
    for registry in found:
        registry.import_from_location()
    return found


# ---------------------------------------------------------------------------------- while it is built
@contextlib.contextmanager
def sealed(cfg: Config) -> Iterator[None]:
    """While something is built from a config that passed the gate, registries import nothing.

    The gate knows parts of a config, not which registry each class asks: a name of one registry that another
    is asked for would be imported as a module of that name.
    """
    with no_imports(_not_registered if isinstance(cfg, Admitted) else None):
        yield


def _not_registered(name: str) -> Refused:
    return Refused(f'a config out of a file asks for {name!r}, which is not registered where it is looked '
                   f'for. {HINT}')
