import pytest
from torch import nn


@pytest.fixture(autouse=True)
def in_mmdets_scope():
    """Detectors are built without a runner here, and a runner of another test may have left its scope."""
    from mmengine.registry import init_default_scope
    init_default_scope('mmdet')


class Everything:
    """One student, one teacher, and every term there is: laws over all terms choose among them."""

    def __init__(self, teacher_width: float = 1 / 8, change=lambda entry: entry):
        from hgd_det.distill.schedule import Progress
        from hgd_det.testing import every_term, make_distiller, tiny_ssd
        self.student_config, teacher = (tiny_ssd(width, with_bn=False) for width in (1 / 16, teacher_width))
        for config in (self.student_config, teacher):
            config['bbox_head'] |= dict(type='DistributionSSDHead', n=4, lo=-4.0, hi=4.0)
        self.model = make_distiller({name: change(entry) for name, entry in every_term().items()},
                                    self.student_config, dict(model=teacher, checkpoint='untrained'))
        self.terms = dict(self.model.distill.items())
        self.model.progress = Progress(50, 100)
        if 'FactorTransfer' in self.terms:
            self.terms['FactorTransfer'].paraphrased += 1      # it has learnt in its part of the training

    def only(self, *names: str, weight: float = 1.0):
        """The model with these terms and no other, in this order."""
        from hgd_det.distill.schedule import Schedule
        self.model.distill = nn.ModuleDict({name: self.terms[name] for name in names})
        self.model.schedules = {name: Schedule(weight=weight) for name in names}
        self.model.zero_grad(set_to_none=True)
        return self.model


@pytest.fixture(scope='module')
def everything():
    return Everything()


@pytest.fixture(scope='module')
def equals():
    """A student that is its teacher. No adapter stands between the two where a method can do without."""
    from hgd_det.distill.map_term import MapTerm
    from hgd_det.distill.registry import TERMS

    def bare(entry):
        kind = TERMS.get(entry['type'])
        plain = issubclass(kind, MapTerm) and kind.adapts and 'none' in kind.policies
        return entry | (dict(adapter='none') if plain else {})
    both = Everything(teacher_width=1 / 16, change=bare)
    return both
