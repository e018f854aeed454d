"""Networks of other libraries: converted from SpikingJelly and proved equal, read from NIR graphs."""

from plif_lightning.convert.converted import Converted, to_spikingjelly_state_dict
from plif_lightning.convert.nir import from_nir
from plif_lightning.convert.spikingjelly import from_spikingjelly

__all__ = ["Converted", "from_nir", "from_spikingjelly", "to_spikingjelly_state_dict"]
