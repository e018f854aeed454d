import itertools
import math
from itertools import chain

import pytest
import torch

from plif_lightning.data.base import holdout_split
from plif_lightning.data.loading import Batch, BatchPlan, make_loader
from plif_lightning.errors import UserError


class Numbers:
    """A data set whose samples are their own indices."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, request):
        return Batch(request.indices.float().view(-1, 1, 1, 1, 1), request.indices, request.indices)


def batches(plan):
    return [request.indices.tolist() for request in plan]


def test_an_epoch_shows_every_sample_once_and_the_next_in_another_order():
    loader = make_loader(Numbers(50), BatchPlan(50, 8, shuffle=True, seed=1))
    first, second = ([batch.sample.tolist() for batch in loader] for _ in range(2))
    for epoch in (first, second):
        assert sorted(chain(*epoch)) == list(range(50))
        assert [len(b) for b in epoch] == [8] * 6 + [2]
    assert first != second
    loader.sampler.set_epoch(0)  # chosen; the one after it follows
    assert [[batch.sample.tolist() for batch in loader] for _ in range(2)] == [first, second]
    assert first != batches(BatchPlan(50, 8, shuffle=True, seed=2))


@pytest.mark.parametrize(("n", "drop_last"), [(64, False), (50, True), (49, False)])
def test_two_loaders_share_the_batches_of_one_with_the_doubled_batch(n, drop_last):
    whole = batches(BatchPlan(n, 16, shuffle=True, drop_last=drop_last, seed=3))
    parts = [batches(BatchPlan(n, 8, True, drop_last, 3, rank, 2)) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == len(whole)
    for one, a, b in zip(whole, *parts, strict=True):
        assert len(a) == len(b)
        assert (a + b)[: len(one)] == one  # an odd last batch is padded beyond that


@pytest.mark.parametrize(
    ("n", "batch_size", "world_size"), [(33, 16, 2), (5, 16, 3), (100, 16, 4), (17, 16, 1), (47, 16, 3), (359, 1, 2)]
)
def test_evaluation_sees_every_sample_once_in_equally_many_batches(n, batch_size, world_size):
    parts = [batches(BatchPlan(n, batch_size, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sorted(chain(*chain(*parts))) == list(range(n))
    assert len({len(part) for part in parts}) == 1
    sizes = {len(b) for part in parts for b in part}
    assert min(sizes) >= 1
    assert max(sizes) <= max(batch_size, 2)


def test_too_few_samples_are_refused():
    with pytest.raises(UserError, match="3 samples are too few for 4 processes"):
        BatchPlan(3, 16, world_size=4)
    with pytest.raises(UserError, match=r"larger than the data \(10 samples\).*--data.drop_last=false"):
        BatchPlan(10, 16, shuffle=True, drop_last=True)
    assert batches(BatchPlan(10, 16)) == [list(range(10))]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_resumes_from_its_state(num_workers):
    def loader():
        return make_loader(Numbers(40), BatchPlan(40, 8, shuffle=True, seed=5), num_workers)

    plan = BatchPlan(40, 8, shuffle=True, seed=5)
    plan.set_epoch(2)
    expected = batches(plan)
    stopped = loader()
    stopped.sampler.set_epoch(2)
    taken = [batch.label.tolist() for batch in itertools.islice(stopped, 3)]
    assert taken == expected[:3]
    state = stopped.state_dict()
    assert state == {"epoch": 2, "samples": 24, "seed": 5}
    resumed = loader()
    resumed.load_state_dict(state)
    resumed.sampler.set_epoch(2)
    assert [b.label.tolist() for b in resumed] == expected[3:]
    assert len(resumed) == 5
    resumed.sampler.set_epoch(3)
    assert len(list(resumed)) == 5


@pytest.mark.parametrize(
    ("first", "then"),
    [((1, 8), (1, 8)), ((1, 8), (2, 8)), ((2, 8), (1, 8)), ((2, 8), (3, 8)), ((1, 16), (1, 32)), ((3, 4), (2, 7))],
)
@pytest.mark.parametrize("seed", [1, 2])  # 2: a run without a seed of its own
def test_a_run_left_within_an_epoch_sees_every_sample_once_with_other_processes_and_batches(first, then, seed):
    def loaders(processes, size, seed=1):
        plans = [BatchPlan(100, size, True, seed=seed, rank=rank, world_size=processes) for rank in range(processes)]
        found = [make_loader(Numbers(100), plan) for plan in plans]
        for loader in found:
            loader.sampler.set_epoch(3)
        return found

    begun, goes_on = loaders(*first), loaders(*then, seed)
    seen = [batch.sample for loader in begun for batch in itertools.islice(loader, 2)]
    for loader in goes_on:
        loader.load_state_dict(begun[0].state_dict())
        done = loader.batches_done(3)
        rest = list(loader)
        assert done + len(rest) == len(loader)
        seen += [batch.sample for batch in rest]
        assert len(list(loader)) == len(loader)  # the next epoch is whole
    every = torch.cat(seen).tolist()
    assert sorted(set(every)) == list(range(100))
    assert len(every) - 100 < then[0]  # what the last batch is padded with


@pytest.mark.parametrize(("n", "fraction"), [(60, 0.15), (98, 0.1), (1000, 0.15), (6742, 0.25)])
def test_holdout_takes_the_last_samples_of_every_class(n, fraction):
    labels = torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(n))
    labels[:20] = 4  # 0.85 * 20 is 17, not 17.000000000000004
    train, val = holdout_split(labels, fraction)
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(n))
    for c in range(5):
        of_class = (labels == c).nonzero().flatten()
        expected = math.ceil(round((1 - fraction) * len(of_class), 9))
        assert torch.equal(train[labels[train] == c], of_class[:expected])


def test_a_holdout_of_nothing_or_of_everything_is_refused():
    for fraction in (0.0, 1.0):
        with pytest.raises(UserError, match="holdout_fraction must lie in"):
            holdout_split(torch.arange(5), fraction)
    with pytest.raises(UserError, match="is no whole sample: pass a larger"):
        holdout_split(torch.arange(5), 0.15)


def test_loader_interrupted_twice_serves_each_sample_once():
    served, seen = None, []
    for batches_taken in (2, 3, 5):
        loader = make_loader(Numbers(100), BatchPlan(100, 8, shuffle=True, seed=5))
        if served is not None:
            loader.load_state_dict(served)
        loader.sampler.set_epoch(2)
        seen += [batch.label for batch in itertools.islice(loader, batches_taken)]
        served = loader.state_dict()
    assert served == {"epoch": 2, "samples": 80, "seed": 5}
    assert len(set(torch.cat(seen).tolist())) == 80


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("taken", [1, 3])
def test_batches_around_a_resume_equal_an_uninterrupted_epoch_with_drop_last(drop_last, taken):
    def loader():
        found = make_loader(Numbers(100), BatchPlan(100, 8, shuffle=True, drop_last=drop_last, seed=5))
        found.sampler.set_epoch(2)
        return found

    stopped, resumed = loader(), loader()
    list(itertools.islice(stopped, taken))
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.batches_done(2) == taken
    assert len(list(resumed)) == len(resumed) - taken == (12 if drop_last else 13) - taken
