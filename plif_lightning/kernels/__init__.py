"""Fused and event-driven kernels of the reference's functions, for the CPU and for CUDA."""

from plif_lightning.kernels.backend import Backend, BackendName, Sparse
from plif_lightning.kernels.bits import SparseMaps
from plif_lightning.kernels.block import EventBlock, PatchMoments, conv_fire_pool
from plif_lightning.kernels.delays import delay_between_steps, linear_of_delayed
from plif_lightning.kernels.density import NEVER, Skip
from plif_lightning.kernels.fused import Norm, moments, moments_over_processes, norm_fire_pool, normalise, run
from plif_lightning.kernels.layout import Pool, at_a_time, real_type
from plif_lightning.kernels.sparse import conv_events, conv_of_spikes, linear_of_bits, linear_of_spikes, table_of

__all__ = [
    "NEVER",
    "Backend",
    "BackendName",
    "EventBlock",
    "Norm",
    "PatchMoments",
    "Pool",
    "Skip",
    "Sparse",
    "SparseMaps",
    "at_a_time",
    "conv_events",
    "conv_fire_pool",
    "conv_of_spikes",
    "delay_between_steps",
    "linear_of_bits",
    "linear_of_delayed",
    "linear_of_spikes",
    "moments",
    "moments_over_processes",
    "norm_fire_pool",
    "normalise",
    "real_type",
    "run",
    "table_of",
]
