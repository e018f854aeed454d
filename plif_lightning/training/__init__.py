"""Training and evaluation of networks by Lightning: the task, losses, schedules, and checks of a step."""

from plif_lightning.training.schedules import OneCycle
from plif_lightning.training.task import SpikingClassifier

__all__ = ["OneCycle", "SpikingClassifier"]
