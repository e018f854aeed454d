"""PLIF spiking networks (Fang et al., ICCV 2021) for PyTorch Lightning.

Names are loaded when they are first used: `plif_lightning.events` works without PyTorch.
"""

import lazy_loader

# __init__.pyi lists the names.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
