"""Import path of the schedules in configurations and checkpoints of earlier versions."""

from plif_lightning.training.schedules import OneCycle as OneCycle
