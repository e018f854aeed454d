"""Plots of spikes, potentials and frames for notebooks; every function returns matplotlib axes."""

import lazy_loader

# __init__.pyi lists the names.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
