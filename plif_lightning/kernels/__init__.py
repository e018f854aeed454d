"""Fused and event-driven kernels of the reference's functions, for the CPU and for CUDA."""

from plif_lightning.kernels.backend import Backend, BackendName
from plif_lightning.kernels.bits import SparseMaps, unpack
from plif_lightning.kernels.block import EventBlock
from plif_lightning.kernels.conv_block import PatchMoments, conv_fire_pool
from plif_lightning.kernels.frozen import FrozenFire
from plif_lightning.kernels.fused import (
    moments,
    moments_over_processes,
    norm_fire,
    norm_fire_pool,
    run,
)
from plif_lightning.kernels.layout import Pool, at_a_time, real_type
from plif_lightning.kernels.policy import Sparse
from plif_lightning.kernels.sparse import (
    conv_of_spikes,
    conv_of_table,
    linear_of_bits,
    linear_of_spikes,
    linear_of_table,
    table_of,
)

__all__ = [
    "Backend",
    "BackendName",
    "EventBlock",
    "FrozenFire",
    "PatchMoments",
    "Pool",
    "Sparse",
    "SparseMaps",
    "at_a_time",
    "conv_fire_pool",
    "conv_of_spikes",
    "conv_of_table",
    "linear_of_bits",
    "linear_of_spikes",
    "linear_of_table",
    "moments",
    "moments_over_processes",
    "norm_fire",
    "norm_fire_pool",
    "real_type",
    "run",
    "table_of",
    "unpack",
]
