"""Make layers of neurons from a name, a class, its import path, or a layer like them."""

import functools
import inspect
import logging
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from typing import Any, Literal, TypeVar, get_args

from plif_lightning.dynamics.firing import Firing, FiringKeywords, Keywords
from plif_lightning.errors import UserError, require_known_arguments, require_number
from plif_lightning.neurons.modules import IF, LIF, PLIF, Neuron, TauPer
from plif_lightning.neurons.published import ALIF, CLIF, EIF, GLIF, KLIF, QIF, Synaptic

_T = TypeVar("_T")
NeuronName = Literal["plif", "lif", "if", "clif", "alif", "qif", "eif", "klif", "synaptic", "glif"]
_CLASSES: dict[str, type[Neuron]] = dict(
    zip(get_args(NeuronName), (PLIF, LIF, IF, CLIF, ALIF, QIF, EIF, KLIF, Synaptic, GLIF), strict=True)
)


class NeuronKeywords(FiringKeywords, total=False):
    """Arguments of `make_neuron` for type checkers, where a constructor passes them on."""

    init_tau: float
    tau_per: TauPer
    learn_threshold: bool


_KEYWORDS = NeuronKeywords.__annotations__ | FiringKeywords.__annotations__


def make_neuron(
    neuron: NeuronName | Neuron | type[Neuron] | Mapping[str, Any],
    channels: int,
    init_tau: float = 2.0,
    tau_per: TauPer = "layer",
    learn_threshold: bool = False,
    **firing: Keywords[FiringKeywords],
) -> Neuron:
    """A layer of neurons of the given kind for inputs [T, N, channels, *].

    Args:
        neuron: a name; a subclass of `Neuron` or its import path; a layer, whose own arguments are kept; or
            {class_path, init_args}.
        channels: channels of the input.
        init_tau: tau_0 > 1 of plif, tau of any other with a name and k = 1/tau, in time-steps.
        tau_per: one time constant (and threshold, if learned) per layer (the paper) or per channel.
        learn_threshold: learn V_th too, initialised with v_threshold; it stays positive.
        firing: see `Firing`.

    Raises:
        UserError: an argument lies outside its range, or is given twice with two values.
    """
    return make_layer(neuron, channels, {}, settings_of_all(init_tau, tau_per, learn_threshold, **firing))


def settings_of_all(
    init_tau: float = 2.0,
    tau_per: TauPer = "layer",
    learn_threshold: bool = False,
    **firing: Keywords[FiringKeywords],
) -> dict[str, Any]:
    """Arguments that all neurons of a network share, with their defaults; see `make_neuron`.

    Args:
        init_tau: tau_0 > 1 of plif, where learning begins; tau of any other with a name and k = 1/tau; in time-steps.
        tau_per: one learned value for each layer (the paper), or for each channel.
        learn_threshold: learn V_th, too.
        firing: constants of `Firing`.
    """
    require_known_arguments("make_neuron", firing, _KEYWORDS)
    constants = Firing(**firing)  # also tells jsonargparse what the keywords are
    return {"init_tau": init_tau, "tau_per": tau_per, "learn_threshold": learn_threshold, **asdict(constants)}


def make_layer(neuron: Any, channels: int, own: Mapping[str, Any], settings: Mapping[str, Any]) -> Neuron:
    """A layer of neurons from the arguments of all neurons, of their kind, and of this layer.

    Args:
        neuron: see `make_neuron`.
        channels: channels of the input.
        own: arguments of this layer, which take precedence over all others.
        settings: `settings_of_all`.

    Raises:
        UserError: an argument of the kind contradicts one of all neurons.
    """
    shared, of_layer = dict(settings), dict(own)
    init_tau = shared.pop("init_tau")
    kind, of_kind = _class_of(neuron)
    _require_own(kind, of_layer)
    defaults = {"tau_per": "layer", "learn_threshold": False, **_FIRING_DEFAULTS}
    for name in (shared.keys() & of_kind.keys()) - of_layer.keys():
        if shared[name] not in (of_kind[name], defaults.get(name)):
            raise UserError(
                f"{name} is {shared[name]!r} for all neurons, but {of_kind[name]!r} for {kind.__name__}: give one of "
                "them."
            )
    given = {**of_kind, **of_layer}
    written = {name: value for name, value in given.items() if name != "channels" and shared.get(name, _NONE) != value}
    if "init_tau" in of_layer:
        of_kind.pop("init_tau", None)
        init_tau = of_layer.pop("init_tau")
    require_number("init_tau", init_tau)
    named = isinstance(neuron, str) and neuron in _CLASSES
    # All neurons share a tau of 2 without saying so; a layer's own is meant.
    if (init_tau != 2.0 or "init_tau" in own) and not (named and "k" in own):
        of_kind = _with_tau(kind, of_kind, init_tau, named)
    made = kind(**{**shared, **of_kind, **of_layer, "channels": channels})
    if (reset := made.constants.reset) != _FIRING_DEFAULTS["reset"] and not made.equations.resets:
        _say_no_reset(reset, kind.__name__)
    made._written = tuple(written.items())  # as a structure writes it
    return made


@functools.cache
def _say_no_reset(reset: str, kind: str) -> None:
    """Said once: not refused, because other layers of the network may reset so."""
    _log.warning("reset=%s has no effect on %s, whose equations have a reset of their own.", reset, kind)


def _require_own(kind: type[Neuron], own: Mapping[str, Any]) -> None:
    """Refuse arguments of a single layer that have no effect, or of another type."""
    if "channels" in own:
        raise UserError(f"channels of {kind.__name__} are those of its layer: leave them out.")
    if kind is IF and "init_tau" in own:
        raise UserError(f"init_tau={own['init_tau']} has no meaning for IF, which has no leak.")
    truths = {"learn_threshold", *(name for name, value in _FIRING_DEFAULTS.items() if isinstance(value, bool))}
    for name, value in own.items():
        if isinstance(value, bool) and name not in truths:
            raise UserError(f"{name} of {kind.__name__} must not be true or false, got {value}.")


_log = logging.getLogger(__name__)
_NONE = object()


_FIRING_DEFAULTS = {name: field.default for name, field in Firing.__dataclass_fields__.items()}


def _with_tau(kind: type[Neuron], own: dict[str, Any], init_tau: float, named: bool) -> dict[str, Any]:
    """The own arguments of a kind with its time constant."""
    if "init_tau" in inspect.signature(kind.__init__).parameters:
        if own.get("init_tau", init_tau) != init_tau:
            raise UserError(f"init_tau is {init_tau} for all neurons, but {own['init_tau']} for {kind.__name__}.")
        return own | {"init_tau": init_tau}
    if named and "k" in kind.declared and init_tau > 1:
        return own | {"k": 1 / init_tau}
    if not (named and kind is IF):
        known = ", ".join(kind.declared) or "none"
        raise UserError(f"init_tau={init_tau} has no meaning for {kind.__name__}; its own parameters are {known}.")
    return own


def _class_of(neuron: Any) -> tuple[type[Neuron], dict[str, Any]]:
    """The class of neurons that an argument means, and the arguments that it brings along.

    Raises:
        UserError: it means none.
    """
    if isinstance(neuron, Neuron):
        return type(neuron), dict(neuron.given)
    if isinstance(neuron, type) and issubclass(neuron, Neuron):
        return neuron, {}
    if isinstance(neuron, Mapping) and isinstance(neuron.get("class_path"), str):
        own = neuron.get("init_args") or {}
        if not isinstance(own, Mapping) or not all(isinstance(name, str) for name in own):
            raise UserError(f"neuron: init_args must be names and values, got {own!r}.")
        return _imported(neuron["class_path"]), dict(own)
    if isinstance(neuron, str):
        if neuron in _CLASSES:
            return _CLASSES[neuron], {}
        if "." in neuron:
            return _imported(neuron), {}
    raise UserError(
        f"neuron must be one of {', '.join(_CLASSES)}, or a subclass of Neuron or its import path, such as "
        f"my_neurons.MyNeuron, got {neuron!r}."
    )


def _imported(path: str) -> type[Neuron]:
    """A class of neurons by its import path."""
    return imported("neuron", path, Neuron, "plif_lightning.Neuron")


def imported(what: str, path: str, base: type[_T], name_of_base: str) -> type[_T]:
    """A class by its import path. Nothing else that a file names is ever called.

    Args:
        what: what it is for, in messages.
        path: such as my_neurons.MyNeuron.
        base: class that it must be derived from.
        name_of_base: its import path.

    Raises:
        UserError: it cannot be imported, or is not derived from the base.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{what} {path} cannot be imported ({error}). Its file must lie in the folder of the command, or in a "
            "package that is installed."
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{what} {path} is not a subclass of {name_of_base}.")
    return found


def as_plain(neuron: Any) -> Any:
    """A description of neurons in plain values, as checkpoints hold it: a name, or {class_path, init_args}.

    Raises:
        UserError: the class cannot be imported under its name.
    """
    if isinstance(neuron, str):
        return neuron
    kind, own = _class_of(neuron)
    path = f"{kind.__module__}.{kind.__qualname__}"
    if "<locals>" in path:
        raise UserError(
            f"neuron {kind.__name__} is defined in a function: move it to a module, or no file can name it."
        )
    return {"class_path": path, "init_args": {name: _plain(name, value) for name, value in own.items()}}


def _plain(name: str, value: Any) -> Any:
    """A copy of an argument in built-in types, as files hold it."""
    if isinstance(value, (list, tuple)):
        return [_plain(name, part) for part in value]
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise UserError(f"{name} of a neuron must be a number or a text to be stored, got a {type(value).__name__}.")
