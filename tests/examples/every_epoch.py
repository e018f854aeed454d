"""A callback that measures the test set after each epoch too: held-out samples then give both protocols."""

from typing import Any

from lightning.pytorch.callbacks import Callback

from plif_lightning.layers.readout import mean_votes


class TestEveryEpoch(Callback):
    def on_validation_epoch_end(self, trainer: Any, task: Any) -> None:
        if trainer.sanity_checking:
            return
        data = trainer.datamodule
        data.setup("test")
        batches = data.test_dataloader()
        correct = sum(int((mean_votes(task(batch.x)).argmax(-1) == batch.label).sum()) for batch in batches)
        task.log("test_each_epoch/acc", correct / len(data.test_set))
