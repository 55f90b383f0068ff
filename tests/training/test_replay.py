"""Draws depend on their number alone: not on workers, not on what was drawn or skipped before."""
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import DataLoader, Dataset

from hgd_det.training.replay import install


class Dice(Dataset):
    """Gives the index and three random numbers."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), torch.rand(1).item()


def loader(workers=0, sampler=InfiniteSampler, seed=3, **kwargs):
    data = Dice()
    return install(DataLoader(data, batch_size=2, sampler=sampler(data, seed=5, **kwargs),
                              num_workers=workers, collate_fn=list), seed)


def draw(batches, **options):
    made = iter(loader(**options))
    return [tuple(item) for _ in range(batches) for item in next(made)]


def test_draws_are_the_same_with_any_number_of_workers():
    assert draw(6, workers=0) == draw(6, workers=1) == draw(6, workers=2)
    assert len({d[1:] for d in draw(6)}) == 12


def test_another_seed_draws_otherwise_in_the_same_order():
    ours, other = draw(3), draw(3, seed=4)
    assert [d[0] for d in ours] == [d[0] for d in other]
    assert all(a[1:] != b[1:] for a, b in zip(ours, other, strict=True))


@pytest.mark.parametrize('workers', [0, 2])
def test_a_loader_that_skips_goes_on_as_if_it_had_drawn(workers):
    whole = draw(6, workers=workers)
    resumed = loader(workers=workers)
    if not hasattr(InfiniteSampler, 'skip'):
        pytest.skip('this mmengine draws and throws away what it skips')
    resumed.sampler.skip(8)
    batches = iter(resumed)
    assert [tuple(i) for _ in range(2) for i in next(batches)] == whole[8:]


def test_epochs_differ_and_are_counted_by_the_sampler():
    made = loader(sampler=DefaultSampler)
    first = [tuple(i) for batch in made for i in batch]
    made.sampler.set_epoch(1)
    second = [tuple(i) for batch in made for i in batch]
    made.sampler.set_epoch(0)
    assert [tuple(i) for batch in made for i in batch] == first
    assert not {d[1] for d in first} & {d[1] for d in second}
    assert not hasattr(made.sampler, 'skip') or hasattr(DefaultSampler, 'skip')


def test_the_processs_own_random_numbers_are_left_alone():
    random.seed(1)
    np.random.seed(1)
    made = iter(loader())
    torch.manual_seed(1)
    expected = (random.Random(1).random(), np.random.RandomState(1).rand(),
                torch.rand(1, generator=torch.Generator().manual_seed(1)).item())
    next(made)
    assert (random.random(), np.random.rand()) == expected[:2]
    assert torch.rand(1).item() == expected[2]
