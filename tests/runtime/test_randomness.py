import torch

from plif_lightning.runtime.randomness import fold_in, hashed_uniform


def test_uniform_numbers_depend_on_key_and_index_alone():
    index = torch.arange(1000)
    whole = hashed_uniform(7, index, 3)
    shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(hashed_uniform(7, shuffled, 3), whole[shuffled])
    assert not torch.equal(hashed_uniform(8, index, 3), whole)


def test_uniform_numbers_are_uniform_and_independent():
    u = hashed_uniform(fold_in(2020, "samples", 0), torch.arange(50_000), 4).double()
    assert u.min() >= 0
    assert u.max() < 1
    assert (u.mean(0) - 0.5).abs().max() < 0.006  # more than four standard errors
    assert (u.var(0) - 1 / 12).abs().max() < 0.002
    correlation = torch.corrcoef(torch.cat([u[:-1], u[1:]], 1).T) - torch.eye(8)
    assert correlation.abs().max() < 0.02


def test_first_number_is_splitmix64s():
    # The first output of SplitMix64 with seed 0 is 0xE220A8397B1DCDAF.
    assert hashed_uniform(0, torch.tensor([0]), 1).item() == (0xE220A8397B1DCDAF >> 40) / 2**24


def test_folded_seeds_differ_by_component_and_order():
    seeds = {fold_in(*parts) for parts in [(1, 2), (2, 1), (1, "2"), (12,), (1, 2, 0)]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
