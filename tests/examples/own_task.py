"""A task of one's own: a penalty on weights, beside any loss."""

import plif_lightning as pl


class Task(pl.SpikingClassifier):
    """A classifier whose weights cost.

    Args:
        penalty: weight of the sum of absolute weights.
    """

    def __init__(self, *arguments, penalty: float = 0.0, **settings):
        super().__init__(*arguments, **settings)
        self.penalty = penalty

    def training_step(self, batch, batch_idx):
        absolute = sum(parameter.abs().sum() for parameter in self.network.parameters())
        self.log("penalty/all", absolute.detach(), on_step=False, on_epoch=True, batch_size=1)
        return super().training_step(batch, batch_idx) + self.penalty * absolute
