"""One process of test_data_parallel.py: `RANK WORLD PORT OUT CASES`. CASES are sets of terms, as JSON; for
each, losses and gradients of two steps are written."""
import json
import os
import sys
from datetime import timedelta

import torch

import hgd_det.registered  # noqa: F401  isort: skip
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.model import MMDistributedDataParallel

from hgd_det.distill.distiller import Distiller
from hgd_det.distill.schedule import Progress
from hgd_det.testing import make_batch, tiny_ssd


def main(rank: int, world: int, port: str, out: str, cases: dict) -> None:
    torch.set_num_threads(1)
    register_all_modules(init_default_scope=True)
    os.environ |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, RANK=str(rank), WORLD_SIZE=str(world))
    torch.distributed.init_process_group('gloo', rank=rank, world_size=world,
                                         timeout=timedelta(seconds=300))
    result = {name: steps(terms, rank, world) for name, terms in cases.items()}
    if rank == 0:
        torch.save(result, out)
    torch.distributed.destroy_process_group()


def steps(terms: dict, rank: int, world: int) -> list[dict]:
    torch.manual_seed(0)
    # no BatchNorm: its statistics are a process's own
    model = Distiller(ConfigDict(tiny_ssd(1 / 32, with_bn=False)),
                      dict(model=ConfigDict(tiny_ssd(1 / 16, with_bn=False)), checkpoint='untrained'),
                      ConfigDict(terms), input_size=96)
    model.init_weights()
    model.train()
    wrapped = MMDistributedDataParallel(model, find_unused_parameters=False)
    # four images whose boxes repeat after two: SSD divides by the positives of its own process
    one, two = make_batch(2, seed=1), make_batch(2, seed=2)
    images, samples = one['inputs'] + two['inputs'], one['data_samples'] * 2
    mine = slice(rank * 4 // world, (rank + 1) * 4 // world)
    result = []
    for iteration in (0, 1):  # in the warm-up or first phase of one term, and after it
        model.progress = Progress(iteration, 10)
        data = model.data_preprocessor(dict(inputs=images[mine], data_samples=samples[mine]), True)
        losses = wrapped(**data, mode='loss')
        total, log = model.parse_losses(losses)
        model.zero_grad()
        total.backward()
        names = sorted(k for k in log if 'share' not in k)
        values = torch.tensor([log[k].item() for k in names])
        torch.distributed.all_reduce(values)
        gradients = {k: p.grad.clone() for k, p in model.named_parameters() if p.requires_grad}
        result.append(dict(losses=dict(zip(names, (values / world).tolist(), strict=True)),
                           gradients=gradients))
    return result


if __name__ == '__main__':
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5], json.loads(sys.argv[5]))
