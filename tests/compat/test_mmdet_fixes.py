import torch
from mmdet.models.necks.ssd_neck import L2Norm

import hgd_det.registered  # noqa: F401


def test_the_norm_of_ssds_neck_begins_with_its_scale_and_not_with_what_lies_in_memory():
    for _ in range(20):
        torch.empty(512).fill_(float('nan'))  # freed at once, and handed out again
        assert (L2Norm(512, scale=20.).weight == 20).all()
    assert (L2Norm(3, 4).weight == 4).all() and L2Norm(3).scale == 20
