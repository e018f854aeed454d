"""Make layers of neurons from a name, a class, its import path, or a layer like them."""

import functools
import inspect
import logging
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from plif_lightning.dynamics.firing import Firing, FiringKeywords, Keywords
from plif_lightning.dynamics.surrogate import surrogate_name
from plif_lightning.errors import UserError
from plif_lightning.neurons import published
from plif_lightning.neurons.modules import IF, Neuron, TauPer
from plif_lightning.neurons.parameters import Initial
from plif_lightning.structure import NEURONS

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_CLASSES: dict[str, type[Neuron]] = {name.lower(): getattr(published, name) for name in NEURONS}
if TYPE_CHECKING:
    NeuronName = str
else:
    NeuronName = Literal[*_CLASSES]  # which the command line shows


class NeuronKeywords(FiringKeywords, total=False):
    """Arguments of `settings_of_all` for type checkers, where a constructor passes them on."""

    init_tau: Initial
    tau_per: TauPer
    learn_threshold: bool


def settings_of_all(
    init_tau: Initial = 2.0,
    tau_per: TauPer = "layer",
    learn_threshold: bool = False,
    **firing: Keywords[FiringKeywords],
) -> dict[str, Any]:
    """Arguments that all neurons of a network share, with their defaults.

    Args:
        init_tau: tau_0 > 1 of plif, where learning begins; tau of any other with a name and k = 1/tau; in time-steps.
            Of plif and lif also drawn values, such as {gamma: [3, 5]}: a distribution of `numpy.random.Generator` and
            its arguments.
        tau_per: a value for each layer (the paper), for each channel, or for each neuron (of layers of features).
        learn_threshold: learn V_th, too.
        firing: constants of `Firing`.
    """
    constants = Firing(**firing)  # also declares the keywords to jsonargparse
    return {"init_tau": init_tau, "tau_per": tau_per, "learn_threshold": learn_threshold, **asdict(constants)}


def make_layer(neuron: Any, channels: int, layer_settings: Mapping[str, Any], settings: Mapping[str, Any]) -> Neuron:
    """A layer of neurons: the layer's arguments win, then the class's, then all neurons'.

    Args:
        neuron: a name; a subclass of `Neuron` or its import path; a layer, or {class_path, init_args}, whose arguments
            other than the defaults win.
        channels: channels of the input.
        layer_settings: arguments of this layer.
        settings: `settings_of_all`.

    Raises:
        UserError: an argument is unknown, lies outside its range, or would have no effect.
    """
    kind, class_settings = class_of(neuron)
    settings_of_neuron = {**class_settings, **layer_settings}
    init_tau = settings_of_neuron.pop("init_tau", None)
    shared = {name: value for name, value in settings.items() if name != "init_tau"}
    if init_tau is None and "k" not in settings_of_neuron and settings["init_tau"] != 2.0:
        init_tau = settings["init_tau"]
    if init_tau is not None:
        settings_of_neuron |= _with_tau(
            kind, init_tau, is_shared="init_tau" not in {**class_settings, **layer_settings}
        )
    neuron_layer = kind(**{**shared, **settings_of_neuron, "channels": channels})
    if neuron_layer.constants.reset != "hard" and not neuron_layer.equations.uses_firing_reset:
        _warn_reset_ignored(neuron_layer.constants.reset, kind.__name__)
    return neuron_layer


@functools.cache
def _warn_reset_ignored(reset: str, kind: str) -> None:
    """Said once: not refused, because other layers of the network may reset so."""
    _log.warning("reset=%s has no effect on %s, whose equations have a reset of their own.", reset, kind)


def _with_tau(kind: type[Neuron], init_tau: Any, is_shared: bool) -> dict[str, Any]:
    """The arguments of a kind that give its time constant; empty for IF if the value is the setting of all neurons."""
    if "init_tau" in inspect.signature(kind.__init__).parameters:
        return {"init_tau": init_tau}
    if kind in _CLASSES.values() and "k" in kind.declared and not isinstance(init_tau, Mapping) and init_tau > 1:
        return {"k": 1 / init_tau}
    if kind is IF and is_shared:
        return {}
    declared = ", ".join(kind.declared) or "none"
    raise UserError(
        f"init_tau={init_tau} has no meaning for {kind.__name__}, whose own parameters are {declared}: leave it at its "
        "default, 2.0."
    )


def _settings_for(kind: type[Neuron], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a kind without its defaults, which the command line fills in, and without the channels."""
    defaults = inspect.signature(kind.__init__).parameters
    return {n: v for n, v in settings.items() if n != "channels" and not (n in defaults and defaults[n].default == v)}


def class_of(neuron: Any) -> tuple[type[Neuron], dict[str, Any]]:
    """The class of neurons that an argument means, and the arguments that it brings along.

    Raises:
        UserError: it means none.
    """
    if isinstance(neuron, Neuron):
        return type(neuron), _settings_for(type(neuron), neuron.settings)
    if isinstance(neuron, type) and issubclass(neuron, Neuron):
        return neuron, {}
    if isinstance(neuron, Mapping) and "class_path" in neuron:
        kind = _import_class(neuron["class_path"])
        return kind, _settings_for(kind, neuron.get("init_args") or {})
    if isinstance(neuron, str):
        if neuron in _CLASSES:
            return _CLASSES[neuron], {}
        if "." in neuron:
            return _import_class(neuron), {}
    raise UserError(
        f"neuron must be one of {', '.join(_CLASSES)}, or a subclass of Neuron or its import path, such as "
        f"my_neurons.MyNeuron, got {neuron!r}."
    )


def _import_class(path: str) -> type[Neuron]:
    return import_class("neuron", path, Neuron, "plif_lightning.Neuron")


def import_class(noun: str, path: str, base: type[_T], name_of_base: str) -> type[_T]:
    """A class by its import path. Nothing else that a file names is ever called.

    Args:
        noun: its purpose, in messages.
        path: such as my_neurons.MyNeuron.
        base: class that it must be derived from.
        name_of_base: its import path.

    Raises:
        UserError: it is missing, or is not derived from the base. An error within its file is raised as it is.
    """
    module, _, name = path.rpartition(".")
    try:
        attribute = getattr(import_module(module), name)
    except (ModuleNotFoundError, AttributeError, ValueError) as error:
        raise UserError(
            f"{noun} {path} cannot be imported ({error}): run the command where {module.partition('.')[0]}.py lies, or "
            "install its package."
        ) from error
    if not (isinstance(attribute, type) and issubclass(attribute, base)):
        raise UserError(f"{noun} {path} is not a subclass of {name_of_base}.")
    return attribute


def describe_neuron(neuron: Any) -> Any:
    """A description of neurons in plain values, as checkpoints hold it: a name, or {class_path, init_args}.

    Raises:
        UserError: the class cannot be imported under its name.
    """
    if isinstance(neuron, str):
        return neuron
    kind, settings = class_of(neuron)
    path = f"{kind.__module__}.{kind.__qualname__}"
    if "<locals>" in path:
        raise UserError(
            f"neuron {kind.__name__} is defined in a function: move it to a module, or no file can name it."
        )
    # Checkpoints may hold neither NumPy's numbers nor functions.
    values = {n: v.item() if hasattr(v, "item") else v for n, v in settings.items()}
    if "surrogate" in values:
        values["surrogate"] = surrogate_name(values["surrogate"])
    return {"class_path": path, "init_args": values}
