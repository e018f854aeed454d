"""Pictures of spikes, potentials and frames, for a notebook; every function gives matplotlib's axes back."""

import lazy_loader

# __init__.pyi lists the names.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
