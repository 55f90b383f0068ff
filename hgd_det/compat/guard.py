"""mmengine's own loading (pretrained backbones, load_from, resume) put under our loader.

mmengine 0.10.7 loads without restriction, and later versions return to that as soon as the
restricted load fails. Both read through `CheckpointLoader`, where each kind of address has its own
function; `guard_mmengine` replaces them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.runner import checkpoint as mm

from hgd_det.checkpoint import load
from hgd_det.errors import UserError
from hgd_det.weights import refuse_not_finite


def guard_mmengine() -> None:
    """From here on every checkpoint that mmengine reads in this process goes through our `load`."""

    def load_from_local(filename, map_location=None):
        content = _without_programs(load(filename, map_location=map_location))
        weights = content.get('state_dict')
        refuse_not_finite(weights if isinstance(weights, dict) else content, f'checkpoint {filename}')
        return content

    def load_from_http(filename, map_location=None, model_dir=None, progress=True):
        return load_from_local(download(filename, model_dir, progress), map_location)

    def load_from_openmmlab(filename, map_location=None):
        name = re.sub(r'^open-?mmlab://', '', filename)
        address = mm.get_external_models().get(mm.get_deprecated_model_names().get(name, name))
        if address is None:
            raise UserError(f'{filename}: no model of this name is known to mmengine')
        if address.startswith(('http://', 'https://')):
            return load_from_http(address, map_location)
        return load_from_local(os.path.join(mm._get_mmengine_home(), address), map_location)

    def load_from_storage(filename, map_location=None):
        raise UserError(f'{filename}: object storage is not read directly; download the file and '
                        'give its path')

    # mmengine names the function in its log, without `load_from_`
    for prefixes, loader in {
        ('',): load_from_local,
        ('http://', 'https://'): load_from_http,
        ('open-mmlab://', 'openmmlab://'): load_from_openmmlab,
        ('pavi://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://'): load_from_storage,
    }.items():
        mm.CheckpointLoader.register_scheme(prefixes, loader, force=True)
    mm.load_from_http = load_from_http  # torchvision:// and mmcls:// look addresses up and end here


def _without_programs(content: dict) -> dict:
    """mmengine's resume runs the text under meta.config, an old name of meta.cfg, as a config file."""
    meta = content.get('meta')
    if isinstance(meta, Mapping) and 'config' in meta:
        content = {**content, 'meta': {key: value for key, value in meta.items() if key != 'config'}}
    return content


def download(address: str, folder: str | None = None, progress: bool = True) -> Path:
    """Fetch a file once into torch's cache; the job's first process does, the others wait."""
    target = Path(folder or os.path.join(torch.hub.get_dir(), 'checkpoints'),
                  Path(urlparse(address).path).name)
    rank, _ = get_dist_info()
    if rank == 0 and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        # torch's habit: the name ends in the start of the sha256
        tag = re.search(r'-([a-f0-9]{8,})\.', target.name)
        try:
            torch.hub.download_url_to_file(address, str(target), tag and tag[1], progress=progress)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(f'{address} could not be downloaded ({error}). Fetch it where there is '
                            'a network, then give its path in its place or put it at '
                            f'{target}') from error
    barrier()
    return target
