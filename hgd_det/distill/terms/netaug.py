"""NetAug (Cai et al., ICLR 2022): the student is a part of a wider detector, and learns as one too."""
from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hgd_det.distill.detection import total_loss
from hgd_det.distill.heads import dense_head
from hgd_det.distill.lesson import Lesson
from hgd_det.distill.registry import TERMS
from hgd_det.distill.term import Spec, Term
from hgd_det.distill.widening import compose, copy_frozen, widen
from hgd_det.errors import UserError


@TERMS.register_module()
class NetAug(Term):
    """Train the student also as the leading channels of a wider detector.

    ::

        L = L_det([W_student, W_aug])       one wider detector per step, its width drawn from ``widths``

    ``[W_student, W_aug]`` has the student's live weights as its leading block, so the wider detector's loss
    reaches them; ``W_aug`` exists only here. What grows are the channels between image and prediction: of
    the head's last convolutions the inputs, of L2Norm the scale, of depthwise convolutions the groups. A
    width is a factor on each number of channels; all widths are cut from the widest one's ``W_aug``.

    The width is a function of the iteration alone: a resumed run draws the same, as do all processes of a
    data-parallel one. Each width has BatchNorm statistics of its own, so the student's see only the
    student's maps and need not be estimated anew. Norms that stay in eval mode read the student's.

    The added channels begin Kaiming-uniform, biases at 0, norms at 1 (L2Norm at its scale). What the
    student's channels take from them begins at 0; the authors draw it too. But the student's weights have
    their full variance already, and without BatchNorm the sum would grow from layer to layer.

    By default the student goes on alone in the second half, as in the authors' recipe. Their sorting of
    channels by importance is left out: it would exchange channels of the student, with their statistics
    and momenta, in mid-training. ``weight`` is the paper's alpha.

    Args:
        widths: Factors above 1 on the student's channels.
    """
    needs = frozenset({'images'})
    needs_teacher, needs_model = False, True
    schedule = dict(weight=1.0, stop=0.5)

    def __init__(self, *, widths: Sequence[float] = (1.5, 2.0)):
        super().__init__()
        if not widths or not all(width > 1 for width in widths):
            raise UserError(f'NetAug: widths={widths}; give factors above 1, such as (1.5, 2.0)')
        self.widths = tuple(float(width) for width in widths)
        self.nets = nn.ModuleList()
        self.below, self.right = nn.ParameterDict(), nn.ParameterDict()
        self.shapes = []

    def setup(self, spec: Spec) -> None:
        student = self.__dict__['student'] = spec.student_model
        if dense_head(student) is None:
            raise UserError(f'NetAug widens one-stage detectors with a dense head; {type(student).__name__} '
                            'is none')
        nets, self.shapes = zip(*widen(student, self.widths, spec.student.input_size), strict=True)
        self.nets.extend(nets)
        widest = self.shapes[self.widths.index(max(self.widths))]
        for name, base in student.named_parameters():
            shape = widest[name]
            if base.ndim and shape[0] > len(base):
                self.below[slashed(name)] = initial(student, name, shape)[len(base):].clone()
            if base.ndim > 1 and shape[1] > base.shape[1]:
                self.right[slashed(name)] = base.new_zeros(len(base), shape[1] - base.shape[1], *shape[2:])

    def weights(self, shapes: dict) -> dict[str, Tensor]:
        """Every parameter of the wider detector with these shapes."""
        parts = ((name, slashed(name), base) for name, base in self.student.named_parameters())
        return {name: compose(base, self.below.get(key), self.right.get(key), shapes[name])
                for name, key, base in parts}

    def forward(self, lesson: Lesson) -> dict[str, Tensor]:
        drawn = random.Random(lesson.progress.iteration).randrange(len(self.widths))
        net, images = self.nets[drawn], lesson.images.detach()
        copy_frozen(net, self.student)
        mixed = lesson.autocast         # a whole detector runs here: as the student ran
        with torch.autocast(images.device.type, dtype=mixed, enabled=mixed is not None):
            losses = functional_call(net, self.weights(self.shapes[drawn]), (images, lesson.samples),
                                     dict(mode='loss'))
        return dict(loss=total_loss(losses), width=images.new_full((), self.widths[drawn]))


def initial(student: nn.Module, name: str, shape: Sequence[int]) -> Tensor:
    """A parameter of the widest detector as its training would begin."""
    owner, _, key = name.rpartition('.')
    whole = torch.empty(shape)
    if whole.ndim > 1:
        return nn.init.kaiming_uniform_(whole, nonlinearity='relu')
    return whole.fill_(float(getattr(student.get_submodule(owner), 'scale', 1)) if key == 'weight' else 0.)


def slashed(name: str) -> str:
    """A parameter's path as one key, which may hold no dot."""
    return name.replace('.', '/')
