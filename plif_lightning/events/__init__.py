"""Read event-camera recordings and turn them into frames. PyTorch is not imported, so reader processes start fast."""

import lazy_loader

# __init__.pyi lists the names.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
