"""ImageNet weights for an SSD-VGG, out of the files people have."""

from __future__ import annotations

from pathlib import Path

from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from hgd_det.checkpoint import load
from hgd_det.errors import UserError
from hgd_det.weights import refuse_not_finite

# torchvision and MMDetection | a whole detector | the SSD ports that saved the bare list of layers
PREFIXES = ('features.', 'backbone.features.', '')
COUNTER = 'num_batches_tracked'  # BatchNorm's, no weight; old files do not have it


def load_vgg(features: nn.Sequential, path: str, trunk_length: int) -> None:
    """Fills `features` from a VGG checkpoint, or says what does not fit.

    The trunk (the first `trunk_length` layers, conv1_1 to conv5_3) must be in the file completely.
    fc6 and fc7 are taken from the file if it has them as convolutions; from a classifier's
    4096-wide linear layers they are cut as SSD does it, every 4th output and every 3rd cell of the
    7x7 window; otherwise they keep their random weights.
    """
    state = _read(path)
    prefix = next((p for p in PREFIXES if f'{p}0.weight' in state), None)
    if prefix is None:
        raise UserError(f'{path} is no VGG checkpoint: it has none of the keys '
                        f'{", ".join(p + "0.weight" for p in PREFIXES)}; '
                        f'it starts with {", ".join(list(state)[:3])}')
    found = {key[len(prefix):]: value for key, value in state.items() if key.startswith(prefix)}
    wanted = features.state_dict()

    trunk = [key for key in wanted
             if int(key.split('.')[0]) < trunk_length and not key.endswith(COUNTER)]
    unfit = [f'{key}: model {_shape(wanted[key])}, file {_shape(found.get(key))}' for key in trunk
             if _shape(found.get(key)) != _shape(wanted[key])]
    if unfit:
        more = f'; and {len(unfit) - 3} more' if len(unfit) > 3 else ''
        raise UserError(f'{path} does not fit this VGG (depth, width and BatchNorm must be those '
                        f'of the file): {"; ".join(unfit[:3])}{more}')
    # Whatever the trunk of the file is followed by (a pooling layer, a classifier), only equal
    # shapes may be taken
    loaded = {key: found[key] for key in wanted if _shape(found.get(key)) == _shape(wanted[key])}
    fc6, fc7 = [name for name, module in features.named_children()
                if int(name) >= trunk_length and isinstance(module, nn.Conv2d)]
    if f'{fc6}.weight' not in loaded:
        cut = _cut_classifier(state, fc6, fc7)
        loaded |= {key: value for key, value in cut.items() if value.shape == wanted[key].shape}
    refuse_not_finite(loaded, path)
    features.load_state_dict(loaded, strict=False)
    random = sorted({int(key.split('.')[0]) for key in wanted.keys() - loaded.keys()
                     if not key.endswith(COUNTER)})
    rest = f'; layers {random} keep their random weights' if random else ''
    print_log(f'VGG from {path}: {len(loaded)} of {len(wanted)} tensors{rest}', logger='current')


def _read(path: str) -> dict[str, Tensor]:
    if '://' in path:
        content = CheckpointLoader.load_checkpoint(path, map_location='cpu')
    elif not Path(path).is_file():
        raise UserError(
            f'no file {path}: this config starts from VGG weights trained on ImageNet. Give yours '
            'with --cfg-options model.backbone.init_cfg.checkpoint=PATH (a file or an address), or '
            'train from scratch, at a cost in accuracy, with model.backbone.init_cfg=None')
    else:
        content = load(path)
    content = content.get('state_dict', content) if isinstance(content, dict) else {}
    return {key: value for key, value in content.items() if isinstance(value, Tensor)}


def _cut_classifier(state: dict[str, Tensor], fc6: str, fc7: str) -> dict[str, Tensor]:
    if _shape(state.get('classifier.0.weight')) != (4096, 512 * 7 * 7):
        return {}
    wide6_OIHW = state['classifier.0.weight'].view(4096, 512, 7, 7)
    return {
        f'{fc6}.weight': wide6_OIHW[::4, :, ::3, ::3],
        f'{fc6}.bias': state['classifier.0.bias'][::4],
        f'{fc7}.weight': state['classifier.3.weight'][::4, ::4, None, None],
        f'{fc7}.bias': state['classifier.3.bias'][::4],
    }


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
