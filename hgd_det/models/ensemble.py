"""Several detectors that answer as one."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import AnchorHead
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from torch import Tensor, nn

from hgd_det.checkpoint import load, newest_intact
from hgd_det.errors import UserError
from hgd_det.paths import read_config
from hgd_det.weights import load_into, student_state_dict


@MODELS.register_module()
class Ensemble(BaseDetector):
    """The mean of detectors with the same anchors: of their scores and of their boxes' deltas.

    ::

        p_a     = 1/K sum_k softmax(z_k,a)        for each anchor a
        delta_a = 1/K sum_k delta_k,a

    Decoding and NMS then happen once, by the first member's head and its `test_cfg`. That head takes
    logits, so it is given ``z_1 + log(p / softmax(z_1))``, of which the softmax is ``p``; of an ensemble
    of one they are the member's own, bit for bit. Sigmoid heads: the mean of each class's sigmoid.

    The config names the weights; `init_weights` loads them, strictly. An ensemble is not trained, and
    costs as much as its members together.

    Args:
        members: ``[dict(config=..., checkpoint=...), ...]``: each a plain detector's config (path or
            config) and its weights (a file, or a run's folder with its newest intact checkpoint).
    """

    def __init__(self, members: Sequence[Mapping]):
        if not members:
            raise UserError('Ensemble: members is empty; give [dict(config=..., checkpoint=...), ...]')
        built = [_build(member) for member in members]
        super().__init__(data_preprocessor=built[0].data_preprocessor)
        self.members = nn.ModuleList(built)
        self.sources = [dict(member) for member in members]
        self.dataset_meta: dict = {}
        facts = [_facts(member) for member in built]
        for number, other in enumerate(facts[1:], 2):
            if differ := [name for name, value in other.items() if value != facts[0][name]]:
                raise UserError(f'Ensemble: member {number} differs from the first in its '
                                f'{", ".join(differ)}; the answers of such detectors have no mean')

    @property
    def bbox_head(self) -> nn.Module:
        return self.members[0].bbox_head

    @staticmethod
    def checkpoints(config: Mapping) -> list[Path]:
        """The files that a model config names."""
        return [_file(member) for member in config['members']]

    def init_weights(self) -> None:
        classes = []
        for member, path in zip(self.members, self.checkpoints(dict(members=self.sources)), strict=True):
            content = load(path)
            load_into(member, student_state_dict(content), what=f'member {path}')
            meta = content.get('meta') if isinstance(content.get('meta'), Mapping) else {}
            classes.append(tuple((meta.get('dataset_meta') or {}).get('classes') or ()))
            if classes[-1] != classes[0]:
                raise UserError(f'Ensemble: member {path} was trained for the classes '
                                f'{", ".join(classes[-1])}, the first for {", ".join(classes[0])}')
        self.dataset_meta = dict(classes=classes[0])

    def extract_feat(self, batch_inputs: Tensor) -> list:
        return [member.extract_feat(batch_inputs) for member in self.members]

    def _forward(self, batch_inputs: Tensor, batch_data_samples=None) -> tuple[list[Tensor], list[Tensor]]:
        """What a head puts out: scores (N, A K, H, W) and deltas (N, A 4, H, W) of each level."""
        outputs = [member.bbox_head(maps) for member, maps in
                   zip(self.members, self.extract_feat(batch_inputs), strict=True)]
        head = self.bbox_head
        sizes = [4 * anchors for anchors in head.prior_generator.num_base_priors]
        if any(len(out) != 2 or [x.shape[1] for x in out[1]] != sizes for out in outputs):
            raise UserError(f'Ensemble: {type(head).__name__} puts out something else than scores and four '
                            'deltas for each anchor')
        scores, deltas = (list(zip(*(out[i] for out in outputs), strict=True)) for i in (0, 1))
        return ([mean_scores(level, head.cls_out_channels, head.use_sigmoid_cls) for level in scores],
                [torch.stack(level).mean(0) for level in deltas])

    def predict(self, batch_inputs: Tensor, batch_data_samples: list, rescale: bool = True) -> list:
        metas = [sample.metainfo for sample in batch_data_samples]
        found = self.bbox_head.predict_by_feat(*self._forward(batch_inputs), batch_img_metas=metas,
                                               rescale=rescale)
        return self.add_pred_to_datasample(batch_data_samples, found)

    def loss(self, batch_inputs: Tensor, batch_data_samples: list) -> dict:
        raise UserError('an ensemble is not trained; train its members, then test it')


def mean_scores(logits: Sequence[Tensor], classes: int, sigmoid: bool = False) -> Tensor:
    """Logits of the mean probability; each of ``logits`` is (N, A K, H, W), K being ``classes``."""
    if sigmoid:
        shift = _shift([F.logsigmoid(z) for z in logits]) - _shift([F.logsigmoid(-z) for z in logits])
    else:
        shift = _shift([z.unflatten(1, (-1, classes)).log_softmax(2) for z in logits]).flatten(1, 2)
    return logits[0] + shift


def _shift(logs: Sequence[Tensor]) -> Tensor:
    """log of the mean probability, relative to the first."""
    return torch.stack([each - logs[0] for each in logs]).logsumexp(0) - math.log(len(logs))


def _build(member: Mapping) -> nn.Module:
    config = member['config']
    if isinstance(config, (str, Path)):
        config = read_config(config)
    detector = MODELS.build(ConfigDict(config.get('model', config)))
    if not isinstance(getattr(detector, 'bbox_head', None), AnchorHead):
        raise UserError(f'Ensemble: {type(detector).__name__} is no detector with one head on anchors; give '
                        'the config of one that trains alone, such as configs/shapes/student.py')
    return detector


def _file(member: Mapping) -> Path:
    path = Path(member['checkpoint'])
    if not path.exists():
        raise UserError(f'Ensemble: the checkpoint {path} does not exist; train the members first')
    if path.is_file():
        return path
    newest, skipped = newest_intact(path)
    if newest is None:
        raise UserError(f'Ensemble: {path} holds no intact checkpoint'
                        + ''.join(f'\n  {reason}' for reason in skipped))
    return newest


def _facts(detector: nn.Module) -> dict:
    """What detectors must share for a mean over their anchors to mean anything."""
    head, images = detector.bbox_head, detector.data_preprocessor
    priors, scales = head.prior_generator, [getattr(images, name, None) for name in ('mean', 'std')]
    return {'classes': (head.num_classes, head.cls_out_channels, head.use_sigmoid_cls),
            'anchors': (priors.strides, [base.tolist() for base in priors.base_anchors]),
            'box coder': (type(head.bbox_coder), vars(head.bbox_coder)),
            'normalisation': ([scale is not None and scale.tolist() for scale in scales],
                              getattr(images, '_channel_conversion', False))}
