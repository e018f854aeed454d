"""From a trained checkpoint to where it is used: folded, streaming, in other simulators."""

import lazy_loader

# __init__.pyi lists the names.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
