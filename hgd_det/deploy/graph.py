"""A dense detector as one function of pixels: what ONNX and `torch.export` are made from."""
from __future__ import annotations

import copy
import math

import torch
from mmcv.cnn.utils import fuse_conv_bn
from torch import Tensor, nn

from hgd_det.deploy.postprocess import Settings
from hgd_det.deploy.student import Student
from hgd_det.distill.heads import anchors_of, dense_head, flatten
from hgd_det.errors import UserError

WHY = 'Only weights can be exported (--format pth)'


class DetectorGraph(nn.Module):
    """``images -> boxes, scores``: normalisation, network, softmax and box decoding in one module.

    ::

        images  uint8   (B, H, W, 3)  RGB, resized to the network's input, as an image file is read
        boxes   float32 (B, M, 4)     x1 y1 x2 y2 as fractions of the image's width and height
        scores  float32 (B, M, C)     per class, without background

    One box per anchor, in anchor order, before any threshold or NMS. Fractions stay right when the
    image had another size: multiply by its width and height. A distribution head gives ordinary
    boxes.

    Args:
        student: A single-stage detector with anchors and a fixed input size.
        half: Compute the network in float16; normalisation and decoding stay in float32.
        fold: Fold BatchNorm into the convolutions before it.
    """

    def __init__(self, student: Student, *, half: bool = False, fold: bool = True):
        super().__init__()
        check(student)
        detector = copy.deepcopy(student.detector).float().eval()
        head = detector.bbox_head
        self.height, self.width = student.input_size
        preprocessor = detector.data_preprocessor
        self.normalised = bool(getattr(preprocessor, '_enable_normalize', False))
        if self.normalised:
            self.register_buffer('mean', preprocessor.mean.float().reshape(1, 3, 1, 1))
            self.register_buffer('std', preprocessor.std.float().reshape(1, 3, 1, 1))
        # pictures are loaded as BGR, and turned where the preprocessor says so
        self.flips = not preprocessor._channel_conversion
        self.dtype = torch.float16 if half else torch.float32
        with torch.no_grad():
            outputs = head(detector.extract_feat(torch.zeros(1, 3, self.height, self.width)))
            anchors = anchors_of(head, flatten(head, outputs).levels, 'cpu')
        levels = flatten(head, outputs).levels
        self.settings = Settings.of(detector.test_cfg, [h * w * a for h, w, a in levels])
        self.register_buffer('anchors', anchors)
        coder = head.bbox_coder
        self.register_buffer('means', torch.tensor(coder.means, dtype=torch.float32))
        self.register_buffer('stds', torch.tensor(coder.stds, dtype=torch.float32))
        self.register_buffer('size', torch.tensor([self.width, self.height] * 2, dtype=torch.float32))
        if fold:
            detector = fuse_conv_bn(detector)
        self.backbone, self.neck = detector.backbone, getattr(detector, 'neck', None)
        self.head = head
        if half:
            self.backbone.half(), self.head.half()
            if self.neck is not None:
                self.neck.half()
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.permute(0, 3, 1, 2).float()
        if self.flips:
            x = x.flip(1)
        if self.normalised:
            x = (x - self.mean) / self.std
        maps = self.backbone(x.to(self.dtype))
        cls_scores, bbox_preds = self.head(maps if self.neck is None else self.neck(maps))[:2]
        if hasattr(self.head, 'to_deltas'):
            bbox_preds = self.head.to_deltas(bbox_preds)
        out = flatten(self.head, (cls_scores, bbox_preds))
        scores = out.cls.float()
        scores = scores.sigmoid() if self.head.use_sigmoid_cls else scores.softmax(-1)[..., :-1]
        return self.decode(out.reg.float()), scores

    def decode(self, deltas: Tensor) -> Tensor:
        """Encoded deltas (B, M, 4) to clamped corners, as fractions.

        ::

            center = anchor center + delta_xy anchor size,  size = anchor size exp(delta_wh)
        """
        deltas = deltas * self.stds + self.means
        corner, opposite = self.anchors[:, :2], self.anchors[:, 2:]
        anchor = opposite - corner
        limit = abs(math.log(16 / 1000))                    # mmdet's wh_ratio_clip
        center = (corner + opposite) / 2 + deltas[..., :2] * anchor
        half = anchor * deltas[..., 2:].clamp(-limit, limit).exp() / 2
        boxes = torch.cat([center - half, center + half], -1) / self.size
        return boxes.clamp(0, 1)


def check(student: Student) -> None:
    """Refuse what a graph cannot hold, saying what can be done."""
    head, kind = dense_head(student.detector), type(student.detector).__name__
    if head is None:
        raise UserError(f'{kind} has no single-stage head, so no graph can be made of it. {WHY}')
    coder = getattr(head, 'bbox_coder', None)
    if type(coder).__name__ != 'DeltaXYWHBBoxCoder' or coder.add_ctr_clamp:
        raise UserError(f'{type(head).__name__} decodes boxes with {type(coder).__name__}; graphs are '
                        f'made of heads with anchors and DeltaXYWHBBoxCoder, as SSD and RetinaNet. {WHY}')
    if getattr(head, 'with_objectness', False) or getattr(head, 'with_score_factors', False):
        raise UserError(f'{type(head).__name__} multiplies its scores with another output, which the '
                        f'graph leaves out. {WHY}')
    if student.input_size is None:
        raise UserError('the test pipeline keeps the shape of images (Resize with keep_ratio=True); a '
                        'graph needs one input size, as Resize(scale=(300, 300), keep_ratio=False) '
                        f'gives. {WHY}')
