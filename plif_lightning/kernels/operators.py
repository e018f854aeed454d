"""Register kernels as PyTorch operators `torch.ops.plif.*`, which autograd and compilers see as one call."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch

# torch.library.custom_op would add five Python calls of overhead to every kernel.
_LIBRARY = torch.library.Library("plif", "FRAGMENT")
Function = TypeVar("Function", bound=Callable[..., Any])
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order)


def not_traced(kernel: Function) -> Function:
    """Decorator: keep Dynamo from tracing into a function, as `torch.compiler.disable` does.

    That one imports Dynamo, which takes a second: more than all else at the start of a stream. So it is called only
    once Dynamo has been imported.
    """
    disabled: Callable[..., Any] | None = None

    @functools.wraps(kernel)
    def run(*arguments: Any, **named: Any) -> Any:
        nonlocal disabled
        if disabled is None:
            if "torch._dynamo" not in sys.modules:
                return kernel(*arguments, **named)
            disabled = torch.compiler.disable(kernel)
        return disabled(*arguments, **named)

    return cast("Function", run)


class Operator:
    """A function registered as the operator `torch.ops.plif.NAME`; calling it runs the function directly.

    Args:
        kernel: the function, with types that `torch.library.infer_schema` supports.
        mutates: the arguments that it writes to.
        devices: dispatch keys that it is registered for.
    """

    def __init__(self, kernel: Callable[..., Any], mutates: Sequence[str], devices: Sequence[str]) -> None:
        self.name = kernel.__name__.removeprefix("_")
        self.kernel = kernel
        _LIBRARY.define(self.name + torch.library.infer_schema(kernel, mutates_args=mutates), tags=_TAGS)
        for device in devices:
            self.register_kernel(device, kernel)
        torch.library.register_vmap(f"plif::{self.name}", self._one_by_one, lib=_LIBRARY)

    def register_kernel(self, device: str, kernel: Callable[..., Any]) -> None:
        """Register a kernel for the devices of a dispatch key."""
        _LIBRARY.impl(self.name, not_traced(kernel), device)

    def _one_by_one(self, info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[Any, Any]:
        """The results for a batch of `torch.func.vmap`, computed one by one."""
        call = getattr(torch.ops.plif, self.name)
        given = [*zip(arguments, in_dims, strict=True)]
        # A list holds numbers, and so does its dimension.
        results = [
            call(*(one.select(dim, i) if isinstance(dim, int) else one for one, dim in given))
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], tuple):
            return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])
        return (None, None) if results[0] is None else (torch.stack(results), 0)

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """Register a function that returns empty results, from which compilers infer shapes and types."""
        torch.library.register_fake(f"plif::{self.name}", fake, lib=_LIBRARY)
        return fake

    def __call__(self, *arguments: Any) -> Any:
        return self.kernel(*arguments)


def operator(
    mutates: Sequence[str] = (), devices: Sequence[str] = ("CPU",)
) -> Callable[[Callable[..., Any]], Operator]:
    """Decorator: register a function as an `Operator`."""
    return lambda kernel: Operator(kernel, mutates, devices)
