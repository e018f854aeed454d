"""The one table of settings, and what reads it."""

import pytest

from plif_lightning.runs.settings import KEYS, changed, comparable, identity, key_of

CONFIG = {
    "model": {"neuron": "plif", "backend": "auto", "optimizer": {"class_path": "torch.optim.Adam"}},
    "data": {"class_path": "plif_lightning.data.MNIST", "init_args": {"root": "data", "num_workers": 2, "size": 48}},
    "trainer": {"max_epochs": 3, "limit_val_batches": 1, "logger": {"init_args": {"name": "a"}}, "profiler": "simple"},
}


def test_the_longest_name_that_fits_is_a_settings_row():
    assert key_of("model.optimizer.init_args.lr").name == "model.optimizer"
    assert key_of("model.v_threshold").name == "model"
    assert key_of("trainer.logger.name").identity == "never"
    assert key_of("checkpoint.every_n_batches").name == "checkpoint"
    assert all(key_of(name) is key for name, key in KEYS.items())


def test_numbers_are_the_same_as_whole_ones_but_for_limits():
    assert comparable(CONFIG)["trainer.max_epochs"] == 3.0
    assert isinstance(comparable(CONFIG)["trainer.limit_val_batches"], int)  # one batch; 1.0 are all of them


def test_where_data_are_tells_runs_apart_until_their_content_is_known():
    known, unknown = identity(CONFIG), identity(CONFIG, planned=True)
    assert set(unknown) - set(known) == {"data.root"}
    assert {"model.neuron", "data.size", "trainer.max_epochs"} <= known.keys()
    assert not {"model.backend", "data.num_workers", "trainer.profiler", "trainer.logger.name"} & unknown.keys()


@pytest.mark.parametrize(
    ("first", "now"),
    [
        ("plif_lightning.schedules.OneCycle", "plif_lightning.training.OneCycle"),
        ("plif_lightning.schedules.OneCycle", "plif_lightning.training.schedules.OneCycle"),
        ("plif_lightning.events.augment.EventFlip", "plif_lightning.data.EventFlip"),
        ("plif_lightning.events.augment.TimeDrop", "plif_lightning.data.event_augment.TimeDrop"),
    ],
)
def test_a_class_that_has_moved_is_the_same(first, now):
    def of(path):
        return {"model": {"lr_scheduler": {"class_path": path}}, "data": {"augmentation": [{"class_path": path}]}}

    assert comparable(of(first)) == comparable(of(now))
    assert comparable(of(now))["model.lr_scheduler.class_path"] == first
    assert not changed(of(first), of(now))
    assert changed(of(first), of("torch.optim.lr_scheduler.StepLR"))
