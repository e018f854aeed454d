"""A parameter or statistic that is NaN or infinite ends the training before a checkpoint is written."""

import math
from types import SimpleNamespace

import pytest
from torch import nn

from plif_lightning.errors import NonFiniteError
from plif_lightning.training.finite import FiniteGuard


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_the_first_value_that_is_not_finite_is_named(name, value):
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    trainer = SimpleNamespace(
        global_step=6,
        current_epoch=1,
        checkpoint_callbacks=[SimpleNamespace(last_model_path="")],
        precision="16-mixed",
    )
    guard = FiniteGuard(network)
    guard.on_train_epoch_end(trainer, None)
    network.state_dict()[name].view(-1)[-1] = value
    network[1].running_mean.fill_(1.0)
    first = rf"{name} is NaN or infinite at step 6 \(epoch 1\).*No checkpoint was written before. Lower the learning"
    with pytest.raises(NonFiniteError, match=first):
        guard.on_train_epoch_end(trainer, None)
    trainer.checkpoint_callbacks[0].last_model_path = "last.ckpt"
    good = r"pass --ckpt_path last\.ckpt and a new --run_folder; lower the learning rate"
    with pytest.raises(NonFiniteError, match=rf"{good}, or use --trainer\.precision 32-true\.$"):
        guard.on_save_checkpoint(trainer, None, {})
    trainer.precision = "32-true"  # which needs no advice to use it
    with pytest.raises(NonFiniteError, match=rf"{good}\.$"):
        guard.on_save_checkpoint(trainer, None, {})
