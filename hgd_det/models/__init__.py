"""Plain MMDetection components. Nothing in here knows that distillation exists."""

from hgd_det.models.complexity import Complexity, count
from hgd_det.models.distribution_head import DistributionSSDHead
from hgd_det.models.ensemble import Ensemble
from hgd_det.models.initializers import BackgroundPrior
from hgd_det.models.mobilenet import MobileNetV1SSD
from hgd_det.models.ssd_head import BatchedSSDHead
from hgd_det.models.vgg import SlimSSDVGG

__all__ = ['BackgroundPrior', 'BatchedSSDHead', 'Complexity', 'DistributionSSDHead', 'Ensemble',
           'MobileNetV1SSD', 'SlimSSDVGG', 'count']
