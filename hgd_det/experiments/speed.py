"""What a config's detector costs: parameters, multiply-adds, images per second without NMS."""
from __future__ import annotations

import time

import torch

from hgd_det.deploy.student import build
from hgd_det.models.complexity import count
from hgd_det.paths import read_config

WARMUP, REPEAT, SECONDS = 2, 50, 5    # timed calls, or seconds, whichever is over first


def cost(config: str) -> tuple[str, str, str]:
    """With random weights, which the time of a network without NMS does not depend on."""
    cfg = read_config(config)
    detector, size = build(cfg).eval(), cfg.input_size
    found = count(detector, size)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    detector.to(device, memory_format=torch.channels_last)
    image = torch.rand(1, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for _ in range(WARMUP):
            detector.bbox_head(detector.extract_feat(image))
        began, calls = _now(device), 0
        while calls == 0 or (calls < REPEAT and _now(device) - began < SECONDS):
            detector.bbox_head(detector.extract_feat(image))
            calls += 1
    rate = calls / (_now(device) - began)
    return f'{found.params / 1e6:.3g} M', f'{found.macs / 1e9:.3g} G', f'{rate:.3g}'


def _now(device: torch.device) -> float:
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()
