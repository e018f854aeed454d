"""From raw recordings of event cameras to frames. Without PyTorch, so that processes that read files start at once."""

from plif_lightning.events.recording import Recording, Sensor

__all__ = ["Recording", "Sensor"]
