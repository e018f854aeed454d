"""The compiled loops of a CPU, as `loops.cpu.forward`; a file is imported at its first use: numba takes a second."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plif_lightning.kernels import cpu as cpu
    from plif_lightning.kernels import cpu_backward as cpu_backward
    from plif_lightning.kernels import cpu_bits as cpu_bits
    from plif_lightning.kernels import cpu_block as cpu_block
    from plif_lightning.kernels import cpu_delay as cpu_delay
    from plif_lightning.kernels import cpu_recurrent as cpu_recurrent
    from plif_lightning.kernels import cpu_sparse as cpu_sparse
    from plif_lightning.kernels.machine_code import machine_code_of as machine_code_of
else:

    def __getattr__(name: str) -> Any:
        if name == "machine_code_of":
            globals()[name] = value = importlib.import_module("plif_lightning.kernels.machine_code").machine_code_of
        elif name.startswith("cpu"):
            globals()[name] = value = importlib.import_module(f"plif_lightning.kernels.{name}")
        else:
            raise AttributeError(name)
        return value
