"""NeuroBench's metrics of a network: `pip install 'plif_lightning[neurobench]'`."""

import lazy_loader

# __init__.pyi lists the names. The package that they need is imported with the first of them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
