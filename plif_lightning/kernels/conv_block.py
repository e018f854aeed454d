"""Convolution, BN, neurons and pool as one function: the convolution is computed per band of rows or per event, and its
output is never stored.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from plif_lightning.dynamics.derivatives import once_differentiable
from plif_lightning.dynamics.equations import Dynamics
from plif_lightning.dynamics.reference import in_own_precision
from plif_lightning.errors import UserError
from plif_lightning.kernels import block as block  # registers the operators
from plif_lightning.kernels.bits import SparseMaps, number_of_spikes
from plif_lightning.kernels.fused import affine, no_seed, real_rows, through_statistics
from plif_lightning.kernels.layout import POOLS, Pool, real_type, threads_for
from plif_lightning.kernels.operators import operator
from plif_lightning.kernels.parallel import parallel
from plif_lightning.kernels.policy import TYPES, Sparse

# Density up to which `auto` computes moments from the non-zero values only.
_FEW = 0.1


class PatchMoments(NamedTuple):
    """Moments of the 3x3 patches of x, in float64; the batch statistics of any 3x3 convolution over x follow from them.

    Attributes:
        mean: mean patch of x [T, N, C, H, W] with zero padding, [T, 9 C].
        covariance: covariance of the patches, [T, 9 C, 9 C].
    """

    mean: Tensor
    covariance: Tensor

    @staticmethod
    def of(x: Tensor, sparse: Sparse = "never") -> "PatchMoments":
        """Moments of x [T, N, C, H, W]; `sparse` as in `conv_fire_pool`."""
        return PatchMoments(*torch.ops.plif.patch_moments(x.detach(), sparse))

    def of_convolution(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each step and channel of the convolution's output, [T, C'] each."""
        w = weight.detach().flatten(1).double()
        variance = ((self.covariance @ w.T) * w.T).sum(1)
        return (self.mean @ w.T).to(real_type(weight)), variance.clamp_(min=0).to(real_type(weight))


@operator(devices=["CompositeExplicitAutograd"])
def _patch_moments(x: Tensor, sparse: str) -> tuple[Tensor, Tensor]:
    if sparse != "never" and x.device.type == "cpu" and x.dtype in TYPES:
        maps = SparseMaps.of(x.flatten(0, 1), binary=False)
        if sparse == "always" or number_of_spikes(maps.bits) <= _FEW * x.numel():
            return _moments_of_events(maps, len(x))
    means, covariances = [], []
    for step in x:
        patches = F.unfold(step.to(real_type(x)), 3, padding=1)  # [N, 9 C, H W]
        mean = patches.mean((0, 2))
        patches -= mean[:, None]
        covariances.append(torch.bmm(patches, patches.transpose(1, 2)).sum(0) / (len(patches) * patches.shape[2]))
        means.append(mean)
    return torch.stack(means).double(), torch.stack(covariances).double()


@_patch_moments.register_fake
def _(x: Tensor, sparse: str) -> tuple[Tensor, Tensor]:
    t, inputs = len(x), 9 * x.shape[2]
    return x.new_empty(t, inputs, dtype=torch.float64), x.new_empty(t, inputs, inputs, dtype=torch.float64)


def _moments_of_events(x: SparseMaps, t: int) -> tuple[Tensor, Tensor]:
    from plif_lightning.kernels import cpu_block

    images, channels, height, width = x.shape
    n = images // t
    sums = torch.zeros(t, 9 * channels, dtype=torch.float64, device="cpu")
    products = torch.zeros(t, 9 * channels, 9 * channels, dtype=torch.float64, device="cpu")
    arrays = *x.arrays(), sums.numpy(), products.numpy()
    parallel(cpu_block.patch_moments, t, threads_for(images * channels * height * width), *arrays, n, height, width)
    count = n * height * width
    mean = sums / count
    # E[xy] - E[x] E[y] does not lose digits here: event counts and their products are integers, exact in float64.
    return mean, products / count - mean[:, :, None] * mean[:, None]


class _ConvFirePool(torch.autograd.Function):
    """Convolution, BN's affine map, neurons and pool; keeps x, statistics and parameters."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        conv: Tensor,
        weight: Tensor,
        bias: Tensor,
        learned: Tensor,
        mean: Tensor,
        invstd: Tensor,
        seed: Tensor,
        patch_mean: Tensor | None,
        patch_covariance: Tensor | None,
        synchronise: bool,
        binary: bool,
        pool: int,
        neuron: str,
        sparse: Sparse,
        stride: int,
    ) -> Tensor:
        scale, shift = affine(weight, bias, mean, invstd)
        return torch.ops.plif.conv_fire_pool(x, conv, scale, shift, learned, binary, pool, neuron, sparse, stride)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, conv, weight, bias, learned, mean, invstd, seed, *of_patches, synchronise, _, pool, neuron, sparse, _ = (
            inputs
        )
        rows = affine(weight, bias, mean, invstd)
        ctx.save_for_backward(x, conv, learned, mean, invstd, *rows, seed, *of_patches)
        ctx.settings = synchronise, pool, neuron, sparse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, conv, learned, mean, invstd, scale, shift, seed, patch_mean, patch_covariance = ctx.saved_tensors
        synchronise, pool, neuron, sparse = ctx.settings
        grad_conv, sums, grad_learned = torch.ops.plif.conv_fire_pool_backward(
            x, conv, scale, shift, mean, learned, seed, grad_out, pool, neuron, sparse
        )
        if patch_mean is not None:
            # The remaining term of dL/dy, slope (y - mean) + constant, is affine in y, and y is linear in the patches:
            # its part of the weight's gradient follows from the patches' moments.
            of_step = x.shape[1] * x.shape[3] * x.shape[4]
            count = of_step * (len(x) // len(scale))
            slope, constant = (
                values.double()[:, :, None] for values in through_statistics(sums, count, scale, invstd, synchronise)
            )
            w = conv.flatten(1).double()
            of_y = w @ patch_covariance  # [T, C', 9 C]
            of_means = (patch_mean @ w.T - mean)[:, :, None] * patch_mean[:, None]
            grad_conv += (
                (slope * (of_y + of_means) + constant * patch_mean[:, None]).sum(0).mul(of_step).view_as(conv)
            ).to(grad_conv.dtype)
        grad_weight, grad_bias = (sums[1] * invstd).sum(0), sums[0].sum(0)
        return None, grad_conv.to(conv.dtype), grad_weight, grad_bias, grad_learned, *[None] * 11


def conv_fire_pool(
    x: Tensor,
    conv: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    invstd: Tensor,
    dynamics: Dynamics,
    *,
    binary: bool = False,
    patches: PatchMoments | None = None,
    synchronise: bool = False,
    pool: Pool = "none",
    seed: Tensor | None = None,
    sparse: Sparse = "never",
    stride: int = 1,
) -> Tensor:
    """Convolution with padding K // 2, BN, neurons and pool of x. The full output of the convolution is never stored.

    The first convolution of a network for events has few input channels and the largest output: recomputing it in the
    backward pass is cheaper than storing and loading its output. If no gradients are needed, any block may use this
    function, because nothing has to be stored for a backward pass.

    Args:
        x: events, images or, without gradients, spikes [T, N, C, H, W]. No gradient flows to x.
        conv: weight of a convolution without bias [C', C, K, K], in the dtype of x; with gradients K is 3.
        weight: BN's weight [C'].
        bias: BN's bias [C'].
        mean: mean of the normalisation, [T or 1, C']; gets no gradient.
        invstd: 1 / sqrt(variance + eps), as mean.
        dynamics: the neurons.
        binary: x holds only zeros and ones.
        patches: moments of x, if mean and invstd are statistics of this batch, so that gradients flow through them.
        synchronise: mean and invstd are taken over the batches of all processes.
        pool: as in `norm_fire_pool`.
        seed: as in `norm_fire_pool`.
        sparse: skip zeros of x on the CPU if that is faster (`auto`), `never` or `always`; never before an average
            pool. An infinite weight times a zero gives NaN only if the zero is not skipped.
        stride: 1 or 2; with gradients 1.

    Returns:
        Spikes [T, N, C', H', W'] in the dtype of x.
    """
    if (conv.shape[-1], stride) != (3, 1) and torch.is_grad_enabled() and (conv.requires_grad or weight.requires_grad):
        raise UserError("conv_fire_pool has gradients for 3x3 kernels with stride 1 only: use torch.no_grad().")
    settings = synchronise, binary, POOLS[pool], dynamics.key, sparse, stride
    with in_own_precision(x.device):
        rows = real_rows(x, weight, bias, mean, invstd, dynamics)
        of_patches = (None, None) if patches is None else patches
        return _ConvFirePool.apply(x, conv, *rows, no_seed() if seed is None else seed, *of_patches, *settings)
