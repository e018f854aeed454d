"""File formats of event cameras: one module per family. `plif_lightning.events.readers` is the way in."""
