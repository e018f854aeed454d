"""Deploy trained networks: BN folding, inference engines, streaming, export to other formats, cost estimates."""

import lazy_loader

# __init__.pyi lists the names.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
