"""Registration of the kernels as PyTorch operators `torch.ops.plif.*`, so that autograd and compilers see one call."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

# torch.library.custom_op does the same with five more Python calls around every kernel.
_LIBRARY = torch.library.Library("plif", "FRAGMENT")
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)


class Operator:
    """A function as the operator `torch.ops.plif.NAME`; called, it is the function.

    Args:
        kernel: typed as `torch.library.infer_schema` wants it; writes to no argument but those named.
        mutates: arguments that it writes to.
        devices: dispatch keys that it serves.
    """

    def __init__(self, kernel: Callable[..., Any], mutates: Sequence[str], devices: Sequence[str]) -> None:
        self.name = kernel.__name__.removeprefix("_")
        self.kernel = kernel
        _LIBRARY.define(self.name + torch.library.infer_schema(kernel, mutates_args=mutates), tags=_TAGS)
        for device in devices:
            self.register_kernel(device, kernel)

    def register_kernel(self, device: str, kernel: Callable[..., Any]) -> None:
        """Takes another kernel on the devices of a dispatch key."""
        # Dynamo must not look into kernels that a function calls outside of a compiled graph.
        _LIBRARY.impl(self.name, torch.compiler.disable(kernel), device)

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """Takes a function that gives the shapes and types of results, for compilers."""
        torch.library.register_fake(f"plif::{self.name}", fake, lib=_LIBRARY)
        return fake

    def __call__(self, *arguments: Any) -> Any:
        return self.kernel(*arguments)


def operator(
    mutates: Sequence[str] = (), devices: Sequence[str] = ("CPU",)
) -> Callable[[Callable[..., Any]], Operator]:
    """Makes an `Operator` of a function."""
    return lambda kernel: Operator(kernel, mutates, devices)
