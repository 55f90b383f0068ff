"""One process of test_data_parallel.py: `RANK WORLD PORT OUT`. Writes losses and gradients of two steps."""
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

TERMS = dict(hgd=dict(type='HGD', weight='auto', warmup=1, macro='variance'),
             focal=dict(type='HGD', weight=2.0, macro='focal', micro='variance'))


def main(rank: int, world: int, port: str, out: str) -> None:
    torch.set_num_threads(1)
    register_all_modules(init_default_scope=True)
    os.environ |= dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=port, RANK=str(rank), WORLD_SIZE=str(world))
    torch.distributed.init_process_group('gloo', rank=rank, world_size=world,
                                         timeout=timedelta(seconds=60))
    torch.manual_seed(0)
    # no BatchNorm: its statistics are a process's own
    model = Distiller(ConfigDict(tiny_ssd(1 / 32, with_bn=False)),
                      dict(config=ConfigDict(tiny_ssd(1 / 16, with_bn=False)), checkpoint='untrained'),
                      ConfigDict(TERMS), input_size=96)
    model.init_weights()
    model.train()
    wrapped = MMDistributedDataParallel(model, find_unused_parameters=False)
    # four images whose boxes repeat after two: SSD divides by the positives of its own process
    one, two = make_batch(2, seed=1), make_batch(2, seed=2)
    images, samples = one['inputs'] + two['inputs'], one['data_samples'] * 2
    mine = slice(rank * 4 // world, (rank + 1) * 4 // world)
    result = []
    for iteration in (0, 1):  # in the warm-up of one term, and after it
        model.progress = Progress(iteration, 10)
        data = model.data_preprocessor(dict(inputs=images[mine], data_samples=samples[mine]), True)
        losses = wrapped(**data, mode='loss')
        total, log = model.parse_losses(losses)
        model.zero_grad()
        total.backward()
        values = torch.tensor([v.item() for k, v in sorted(log.items()) if 'share' not in k])
        torch.distributed.all_reduce(values)
        gradients = {k: p.grad.clone() for k, p in model.named_parameters()}
        names = sorted(k for k in log if 'share' not in k)
        result.append(dict(losses=dict(zip(names, (values / world).tolist(), strict=True)),
                           gradients=gradients))
    if rank == 0:
        torch.save(result, out)
    torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
