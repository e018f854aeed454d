"""Compare a converted network with its original."""

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from plif_lightning.convert.excitation import Excitation, is_telling, rate_of
from plif_lightning.convert.forming import default_dtype
from plif_lightning.convert.recording import record_calls
from plif_lightning.convert.versions import Library
from plif_lightning.errors import UserError
from plif_lightning.layers.pooling import TimeDropout
from plif_lightning.network.inspect import forward_hooks, restore_modes
from plif_lightning.network.stepping import largest_value

_TOLERANCE = 1e-7  # of the largest value
_GRADIENT = "the gradient of"


def _fixed_mask(module: Any, x: Tensor) -> Tensor:
    """A mask of dropout that depends on the shape alone, for both networks."""
    uniform = torch.rand(x.shape, generator=torch.Generator().manual_seed(x.numel()), dtype=torch.float64)
    return ((uniform >= module.p).to(x.dtype) / (1 - module.p)).to(x.device)


def _store_fixed_mask(module: Any, x: Tensor) -> None:
    module.mask = _fixed_mask(module, x)


def _fixed_mask_of_steps(module: Any, x: Tensor) -> Tensor:
    return _fixed_mask(module, x[0])


@contextmanager
def _in_float64() -> Iterator[None]:
    """Answer in float64 what a forward asks for in float32: `x.float()`, `torch.zeros(n)`, `dtype=torch.float32`."""
    with default_dtype(torch.float64), _Float64ForFloat32():
        yield


class _Float64ForFloat32(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        wide = [torch.float64 if argument is torch.float32 else argument for argument in arguments]
        wide_named = {name: torch.float64 if v is torch.float32 else v for name, v in (named or {}).items()}
        answer: Any = Tensor.double if function is Tensor.float else function
        return answer(*wide, **wide_named)


class Proof:
    """A copy of a network in float64 with firing nodes, and comparisons with its conversion; a context manager.

    While it lasts, what is asked for in float32 is in float64. Random numbers of the caller are restored.

    Args:
        net: the network; it is left alone.
        x: an example.
        is_node: True for a spiking neuron.
        library: the generation that the network is of.

    Attributes:
        net: the copy.
        x: the example in float64.
        repeats: two calls of the network with the same random numbers give the same.
        untelling: nodes that fired too rarely or too often in the last comparison to prove anything.
    """

    def __init__(self, net: nn.Module, x: Tensor, is_node: Callable[[nn.Module], bool], library: Library) -> None:
        self.original, self.net = (net, x), copy.deepcopy(net).double()
        self.x = x.detach().double() if x.is_floating_point() else x.detach()
        self.nodes = {name: module for name, module in self.net.named_modules() if is_node(module)}
        self.library, self._reset = library, library.reset
        self.repeats = True
        self.untelling: list[str] = []
        self._context = ExitStack()

    def __enter__(self) -> "Proof":
        with ExitStack() as context:  # left where an error ends the preparation
            context.enter_context(torch.random.fork_rng(devices=[self.x.device] if self.x.is_cuda else []))
            self._prepare(context)
            self._context = context.pop_all()
        return self

    def _prepare(self, context: ExitStack) -> None:
        """Make nodes fire, and enter what lasts for the comparison."""
        torch.manual_seed(0)
        for module in self.net.modules():
            if isinstance(module, self.library.layer.Dropout):
                dropout: Any = module
                # That of clock_driven stores its mask, the new one returns it.
                stores = partial(_store_fixed_mask, dropout)
                dropout.create_mask = stores if self.library.single_steps else _fixed_mask.__get__(module)
        try:
            with restore_modes(self.net), _in_float64():
                Excitation(self.net.train(), self.x, self.nodes.values(), self._reset).run()
        except Exception as error:
            if of_example := self._error_of_example():
                raise UserError(
                    f"the example, {list(self.x.shape)} for at most 4 samples, does not run through "
                    f"{type(self.net).__name__}: {of_example}"
                ) from error
            raise UserError(
                f"{type(self.net).__name__} runs the example, but not in float64, in which it is compared: "
                f"{str(error).rstrip('.')}. Convert it without an example, or write its code for any type."
            ) from error
        context.enter_context(_in_float64())
        first, second = (self._outputs() for _ in range(2))
        self.repeats = not _difference(first, second)

    def __exit__(self, *error: object) -> None:
        self._context.close()

    @torch.no_grad()
    def _error_of_example(self) -> str:
        """The error of the network itself, on a copy, for the example; empty if it runs."""
        net, x = self.original
        try:
            copy.deepcopy(net)(x.clone())
        except Exception as error:  # of the user's forward
            return f"{type(error).__name__}: {error}"
        return ""

    @torch.no_grad()
    def _outputs(self) -> dict[str, Any]:
        torch.manual_seed(0)
        self._reset(self.net)
        with _restore_buffers(self.net):
            outputs = [y for y in tree_leaves(self.net(self.x.clone())) if isinstance(y, Tensor)]
            return {f"output {i}": y for i, y in enumerate(outputs)}

    # --- comparing

    def difference(self, converted: Any) -> str:
        """The first difference between the network and its conversion; empty if there is none.

        Outputs, gradients and buffers are compared in two passes in training mode, one in the network's own modes, and
        one in evaluation mode. `untelling` is set to the nodes whose firing in them proves nothing.
        """
        if not self.repeats:
            return "two calls with the same random numbers differ"
        for module in converted.modules():
            if isinstance(module, TimeDropout):
                module._mask = _fixed_mask_of_steps.__get__(module)  # type: ignore[method-assign]
        here = {name: own_name for name, (own_name, _) in converted.names.items()}
        nets = ((self.net, {name: name for name in here}), (converted, here))
        rates: dict[str, list[float]] = {}
        try:
            with (
                _restore_buffers(self.net),
                forward_hooks(self.nodes, lambda name, node, x, y: rates.setdefault(name, []).append(rate_of(y))),
            ):
                for call, mode in enumerate((True, True, None, False)):
                    with restore_modes(self.net, converted):
                        for module in (*self.net.modules(), *converted.modules()):
                            module.training = module.training if mode is None else mode
                        theirs, own = (self._step(net, names, call) for net, names in nets)
                        if differing := _difference(theirs, own):
                            of_mode = {True: "training", None: "the modes as given", False: "evaluation"}[mode]
                            return f"{self._first_node(converted) or differing} in {of_mode}"
        except UserError as error:
            return str(error).rstrip(".")
        except Exception as error:  # a forward that reaches into its layers may not find them
            return f"{type(error).__name__}: {error}".splitlines()[0]
        finally:
            self.net.zero_grad()
            self._reset(self.net)
        shares = {name: of_calls for name, of_calls in rates.items() if not any(map(is_telling, of_calls))}
        self.untelling = [
            f"{name} fires in {100 * of_calls[0]:.0f} % of its outputs" for name, of_calls in shares.items()
        ]
        if self.untelling:
            self.untelling[-1] += (
                ", which proves nothing: pass an example of larger values, or of more steps or samples"
            )
        return ""

    def _step(self, net: nn.Module, names: dict[str, str], call: int) -> dict[str, Any]:
        """Outputs and buffers of a call with a fresh input; in training, all gradients."""
        torch.manual_seed(call)
        x = self.x if call == 0 or not self.x.is_floating_point() else self.x * torch.rand_like(self.x) * 2
        x = x.clone().requires_grad_(self.x.is_floating_point())
        self._reset(net)
        net.zero_grad()
        with torch.set_grad_enabled(net.training):
            outputs = [y for y in tree_leaves(net(x.clone())) if isinstance(y, Tensor)]
        torch.manual_seed(call)
        trained = [y for y in outputs if y.requires_grad]
        torch.autograd.backward(trained, [torch.randn(y.shape, dtype=y.dtype).to(y.device) for y in trained])
        parameters, buffers = dict(net.named_parameters()), dict(net.named_buffers())
        outcome: dict[str, Any] = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
        outcome[f"{_GRADIENT} the input"] = x.grad
        for name, here in names.items():
            if here in buffers:
                outcome[name] = buffers[here].clone()
            elif here in parameters:
                outcome[f"{_GRADIENT} {name}"] = parameters[here].grad
        return outcome

    def _first_node(self, converted: Any) -> str:
        """The first node, or last layer of a block, with a different output; empty if none."""
        parts = dict(converted.net.named_modules())
        last_nodes = {name for name, child in parts.items() if getattr(child, "last", False)}
        last_nodes |= {name for name in self.nodes if not getattr(parts.get(name), "followed", True)}
        values: list[dict[str, Tensor]] = []
        for net, modules in ((self.net, dict(self.net.named_modules())), (converted, parts)):
            torch.manual_seed(0)
            self._reset(net)
            named = {module: name for name, module in modules.items() if name in last_nodes}
            values.append({named[module]: y for module, _, y in record_calls(list(named), net, self.x)})
        theirs, own = values
        differing = (name for name, y in theirs.items() if name in own and not _equal(own[name], y, largest_value(y)))
        return next((f"{name} differs" for name in differing), "")


@contextmanager
def _restore_buffers(net: nn.Module) -> Iterator[None]:
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in net.named_buffers():
                value.copy_(buffers[name])


def _equal(a: Any, b: Any, size: float) -> bool:
    """True if two tensors are equal up to rounding, in any shape; a gradient that is not there is zero."""
    if a is None or b is None:
        return max(largest_value(a), largest_value(b)) <= _TOLERANCE * size
    if a.numel() != b.numel():
        return False
    a, b = a.double().reshape(-1), b.double().reshape(-1)
    return torch.allclose(a, b, rtol=0, atol=_TOLERANCE * size, equal_nan=True)


def _difference(theirs: dict[str, Any], own: dict[str, Any]) -> str:
    """The first result that differs."""
    # A gradient that cancels to nothing, as of a bias before BN, is rounding beside the others.
    largest = max((largest_value(value) for name, value in theirs.items() if name.startswith(_GRADIENT)), default=0.0)
    for name, value in theirs.items():
        size = largest if name.startswith(_GRADIENT) else largest_value(value)
        if not _equal(own.get(name), value, size):
            return f"{name} differs"
    return ""
