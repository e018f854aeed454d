import itertools
import shutil
from collections import namedtuple
from itertools import chain

import pytest
import torch

from plif_lightning.data.batch import Batch
from plif_lightning.data.loading import BatchPlan, make_loader
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
    plan = BatchPlan(50, 8, shuffle=True, seed=1)
    first = batches(plan)
    plan.set_epoch(1)
    second = batches(plan)
    for epoch in (first, second):
        assert sorted(chain(*epoch)) == list(range(50))
        assert [len(b) for b in epoch] == [8] * 6 + [2]
    assert first != second
    assert first == batches(BatchPlan(50, 8, shuffle=True, seed=1))
    assert first != batches(BatchPlan(50, 8, shuffle=True, seed=2))


@pytest.mark.parametrize("n", [64, 50, 49])
@pytest.mark.parametrize("drop_last", [True, False])
def test_two_processes_do_together_what_one_does_with_the_doubled_batch(n, drop_last):
    whole = batches(BatchPlan(n, 16, shuffle=True, drop_last=drop_last, seed=3))
    parts = [batches(BatchPlan(n, 8, True, drop_last, 3, rank, 2)) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == len(whole)
    for one, a, b in zip(whole, *parts, strict=True):
        assert len(a) == len(b)
        assert (a + b)[: len(one)] == one  # an odd last batch is padded beyond that


@pytest.mark.parametrize(("n", "world_size"), [(33, 2), (32, 2), (5, 3), (100, 4), (17, 1), (47, 3)])
def test_evaluation_sees_every_sample_once_in_equally_many_batches(n, world_size):
    parts = [batches(BatchPlan(n, 16, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert sorted(chain(*chain(*parts))) == list(range(n))
    assert len({len(part) for part in parts}) == 1
    assert min(len(b) for part in parts for b in part) >= 1
    assert max(len(b) for part in parts for b in part) <= 16


def test_no_process_gets_an_empty_batch_in_evaluation():
    parts = [batches(BatchPlan(359, 1, rank=rank, world_size=2)) for rank in (0, 1)]
    assert [len(part) for part in parts] == [179, 179]
    assert sorted(chain(*chain(*parts))) == list(range(359))
    assert {len(b) for part in parts for b in part} <= {1, 2}
    with pytest.raises(UserError, match="3 samples are too few for 4 processes"):
        BatchPlan(3, 16, world_size=4)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_do_not_depend_on_the_number_of_workers(num_workers):
    loader = make_loader(Numbers(40), BatchPlan(40, 8, shuffle=True, seed=5), num_workers)
    assert [b.label.tolist() for b in loader] == batches(BatchPlan(40, 8, shuffle=True, seed=5))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_goes_on_where_its_state_stands(num_workers):
    def loader():
        return make_loader(Numbers(40), BatchPlan(40, 8, shuffle=True, seed=5), num_workers)

    whole = loader()
    whole.sampler.set_epoch(2)
    expected = [b.label.tolist() for b in whole]
    stopped = loader()
    stopped.sampler.set_epoch(2)
    iterator = iter(stopped)
    for _ in range(3):
        next(iterator)
    state = stopped.state_dict()
    assert state == {"epoch": 2, "served": 3, "global_batch": 8, "seed": stopped.sampler.seed}
    resumed = loader()
    resumed.load_state_dict(state)
    resumed.sampler.set_epoch(2)
    assert [b.label.tolist() for b in resumed] == expected[3:]
    assert len(resumed) == 5
    resumed.sampler.set_epoch(3)
    assert len(list(resumed)) == 5


def test_state_of_a_finished_epoch_does_not_shorten_the_next():
    loader = make_loader(Numbers(40), BatchPlan(40, 8, shuffle=True))
    loader.load_state_dict({"epoch": 0, "served": 5})
    loader.sampler.set_epoch(1)
    assert len(list(loader)) == 5


def test_a_batch_larger_than_the_data_is_refused_where_it_would_leave_nothing():
    with pytest.raises(UserError, match=r"larger than the data \(10 samples\).*--data.drop_last=false"):
        BatchPlan(10, 16, shuffle=True, drop_last=True)
    assert batches(BatchPlan(10, 16)) == [list(range(10))]


def test_a_plain_loop_sees_another_order_each_epoch_and_set_epoch_chooses_it():
    loader = make_loader(Numbers(20), BatchPlan(20, 4, shuffle=True, seed=1))
    first, second = ([batch.sample.tolist() for batch in loader] for _ in range(2))
    assert first != second
    loader.sampler.set_epoch(0)
    assert [batch.sample.tolist() for batch in loader] == first
    assert [batch.sample.tolist() for batch in loader] == second


def test_a_run_left_within_an_epoch_goes_on_with_the_same_samples_or_not_at_all():
    def made(batch_size, world_size, rank=0):
        plan = BatchPlan(100, batch_size, shuffle=True, seed=1, rank=rank, world_size=world_size)
        return make_loader(Numbers(100), plan)

    first = made(8, 1)
    first.sampler.set_epoch(3)
    taken = list(itertools.islice(first, 5))
    state = first.state_dict()
    rest = made(8, 1)
    rest.load_state_dict(state)
    rest.sampler.set_epoch(3)
    seen = torch.cat([batch.sample for batch in (*taken, *rest)])
    assert sorted(seen.tolist()) == list(range(100))
    for other in (made(8, 2), made(4, 1), made(16, 1)):
        other.load_state_dict(state)
        other.sampler.set_epoch(3)
        with pytest.raises(UserError, match="interrupted in epoch 3, after 5 batches of 8 samples"):
            next(iter(other))
        other.sampler.set_epoch(4)  # a whole epoch may use another batch size
        assert len(list(other)) == len(other)
    chance = make_loader(Numbers(100), BatchPlan(100, 8, shuffle=True, seed=2))  # a run without a seed of its own
    chance.load_state_dict(state)
    chance.sampler.set_epoch(3)
    assert torch.equal(torch.cat([batch.sample for batch in (*taken, *chance)]), seen)
    half = made(4, 2)  # the same global batch size
    half.load_state_dict(state)
    half.sampler.set_epoch(3)
    assert len(list(half)) == len(half) - 5
    old = made(8, 2)
    old.load_state_dict({"epoch": 3, "served": 5})  # from an older checkpoint
    old.sampler.set_epoch(3)
    assert len(list(old)) == len(old) - 5


def test_workers_without_room_for_their_batches_are_refused(monkeypatch):
    plan = BatchPlan(100, 8)
    make_loader(Numbers(100), plan, num_workers=1)
    usage = namedtuple("Usage", "free")(100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    make_loader(Numbers(100), plan)
    few = make_loader(Numbers(2), BatchPlan(2, 1000), num_workers=2)  # only two samples exist, not a thousand
    assert len(few) == 1
    with pytest.raises(UserError, match=r"data.num_workers=2 processes pass their batches through /dev/shm"):
        make_loader(Numbers(100), plan, num_workers=2)
