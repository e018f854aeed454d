"""Calls of a network's layers, recorded on an example."""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from plif_lightning.convert.blocks import BlockReadError

Call = tuple[nn.Module, Any, Any]


def record_calls(modules: Sequence[nn.Module], net: nn.Module, x: Tensor, distinct_outputs: bool = False) -> list[Call]:
    """Calls of modules in a call of a network, in order: module, first input and output.

    With `distinct_outputs` an input that a module passes on is another object behind it.
    """
    calls: list[Call] = []
    versions: dict[int, tuple[Tensor, int]] = {}  # of outputs, by their memory

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        x: Any = inputs[0] if inputs else None
        if distinct_outputs and inputs and output is x:
            output = output.view_as(output)
        if isinstance(x, Tensor) and x.numel():
            seen, version = versions.get(x.data_ptr(), (x, x._version))
            if seen._version != version:
                x = x.clone()  # written in place since, as by `out += identity`: no longer that output
        calls.append((module, x, output))
        if isinstance(output, Tensor) and output.numel():
            versions[output.data_ptr()] = output, output._version
        return output

    with ExitStack() as hooks, torch.no_grad():
        for module in modules:
            hooks.enter_context(module.register_forward_hook(note))
        net(x.clone())  # which it may change in place
    return calls


def is_reshaped(x: Any, y: Tensor) -> bool:
    """True if x is y, or y in another shape."""
    if not isinstance(x, Tensor) or x is y:
        return x is y
    return x.data_ptr() == y.data_ptr() and x.numel() == y.numel() > 0 and x.is_contiguous() and y.is_contiguous()


def takes_images(net: nn.Module, x: Tensor, is_node: Callable[[nn.Module], bool]) -> bool:
    """True if a network holds the samples of x [N, C, H, W] for T steps, False for sequences [T, N, C, L].

    Its first node sees the number of samples in dimension 1, whichever that is in x.
    """
    number, shapes = 3 if x.shape[1] != 3 else 2, list[torch.Size]()
    trial, of_gpu = copy.deepcopy(net), [x.device] if x.is_cuda else []
    with torch.no_grad(), torch.random.fork_rng(of_gpu), suppress(Exception), ExitStack() as hooks:
        for module in filter(is_node, trial.modules()):
            note = module.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
            hooks.enter_context(note)
        trial(x[:number].clone())  # an error is named by the comparison
    return not shapes or len(shapes[0]) < 2 or shapes[0][1] == len(x[:number])


@torch.no_grad()
def block_that_is_read(converted: nn.Module, x: Tensor) -> str:
    """The first layer of a block between whose layers the forward reads an output; empty if there is none."""
    for mode in (True, False):
        try:
            converted.train(mode)(x.clone())
        except BlockReadError as error:
            return error.block
        except Exception:  # which the comparison names
            return ""
    return ""
