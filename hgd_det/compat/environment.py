"""What is installed: versions for the log, and advice where something is missing or unfit.

Two stacks carry the same import names: the maintained `onedl-*` continuations, and the classic
`mmengine` 0.10.7, `mmcv` 2.1, `mmdet` 3.3. Versions are read from the installed metadata, so asking
imports nothing.
"""

import platform
import re
from importlib import import_module, metadata
from importlib.machinery import PathFinder
from importlib.util import find_spec

from hgd_det.errors import UserError

# Import name -> distributions that provide it, each with its lowest version and the first too new.
# The first in a row is the one to recommend.
PROVIDERS = {
    'mmengine': {'onedl-mmengine': ('0.10.12', '1'), 'mmengine': ('0.10.7', '1'),
                 'mmengine-lite': ('0.10.7', '1')},
    'mmcv': {'onedl-mmcv': ('2.3.6', '3'), 'mmcv': ('2.1', '2.2'),  # mmdet 3.3 refuses mmcv 2.2
             'mmcv-lite': ('2.1', '2.2')},
    'mmdet': {'onedl-mmdetection': ('3.5.1', '4'), 'mmdet': ('3.3', '4')},
    'torch': {'torch': ('2.4', '3')},
    'cv2': {'opencv-python-headless': ('4', '6'), 'opencv-python': ('4', '6'),
            'opencv-contrib-python-headless': ('4', '6'), 'opencv-contrib-python': ('4', '6')},
    'pycocotools': {'pycocotools': ('2.0', '3')},
    'faster_coco_eval': {'faster-coco-eval': ('1.6', '2')},
}
STACK = ('mmengine', 'mmcv', 'mmdet')


def version(distribution):
    """Its installed version, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def installed(module):
    """The installed distributions that provide a module."""
    return [name for name in PROVIDERS[module] if version(name)]


def has_compiled_ops():
    """Whether mmcv's own compiled extension is there. Imports nothing."""
    mmcv = find_spec('mmcv')
    places = mmcv.submodule_search_locations if mmcv else None
    return bool(places and PathFinder.find_spec('mmcv._ext', places))


def versions():
    """Version by import name, with the distribution where names differ, and the kind of ops."""
    found = {'python': platform.python_version(), 'numpy': version('numpy')}
    for module in ('torch', *STACK, 'cv2'):
        names = [f'{version(name)} ({name})' if name != module else version(name)
                 for name in installed(module)]
        found[module] = ', '.join(names) or None
    found['ops'] = 'compiled' if has_compiled_ops() else 'stand-in'
    return found


def requirement(module):
    name, (low, _) = next(iter(PROVIDERS[module].items()))
    return f'"{name}>={low}"'


def as_tuple(text):
    """'2.13.0+cpu' -> (2, 13, 0)"""
    return tuple(int(part) for part in re.findall(r'\d+', text.split('+')[0])[:3])


def problems():
    """One sentence for each package that is missing, unfit, or installed twice."""
    found = {module: installed(module) for module in PROVIDERS}
    for module, names in found.items():
        if not names:
            yield f'{module} is missing: pip install {requirement(module)}'
        if len(names) > 1 and module != 'cv2':
            yield (f'{" and ".join(names)} overwrite each other, both are {module}: '
                   f'pip uninstall {" ".join(names)}, then install the one you want')
        for name in names:
            low, high = PROVIDERS[module][name]
            if not as_tuple(low) <= as_tuple(version(name)) < as_tuple(high):
                yield (f'{name} is {version(name)}, wanted is {low} or later and below {high}: '
                       f'pip install "{name}>={low},<{high}"')
    names = [name for module in STACK for name in found[module]]
    if len({name.startswith('onedl-') for name in names}) > 1:
        yield (f'{", ".join(names)} come from two stacks; take all from one: pip install '
               f'{" ".join(map(requirement, STACK))}')


def check():
    """Raise one `UserError` with all that is wrong with the installation, if anything is."""
    found = list(problems())
    if found:
        raise UserError('these packages do not fit:\n- ' + '\n- '.join(found))
    try:
        import_module('cv2')
    except ImportError as error:
        raise UserError(explain(error) or f'OpenCV does not load: {error}') from error


def explain(error):
    """Advice for an `ImportError`; None where there is nothing better to say than itself."""
    text = str(error)
    if re.search(r'lib(GL|gthread|glib|X|xcb|SM|ICE)\S*: cannot open shared object', text):
        return (f'OpenCV does not load: {text}. opencv-python wants graphics libraries that this '
                'machine lacks; the build without windows does not: '
                'pip install --force-reinstall --no-deps opencv-python-headless')
    if '_ext' in text and 'undefined symbol' in text:
        return (f"mmcv's compiled operators were built for another torch than {version('torch')}: "
                f'{text}. Build them anew, or install mmcv without them')
    module = (getattr(error, 'name', None) or '').split('.')[0]
    if module in PROVIDERS and not installed(module):
        return f'{module} is missing: pip install {requirement(module)}'
    return None
