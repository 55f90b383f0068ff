import pytest
import torch

import hgd_det  # noqa: F401  (provides mmcv._ext)
from hgd_det.compat.sampling import _torchvision_op


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def device(request):
    """Each operator is the same function on both; `-m gpu` runs the second half."""
    if request.param == 'cuda' and not torch.cuda.is_available():
        pytest.skip('no CUDA device')
    return request.param


@pytest.fixture
def torchvision():
    if _torchvision_op('nms', 'CPU') is None:
        pytest.skip('no torchvision that works with this torch')
