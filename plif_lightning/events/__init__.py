"""From raw recordings of event cameras to frames. Without PyTorch, so that processes that read files start at once."""

import lazy_loader

# __init__.pyi lists the names.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
