"""`cost --measure`: time and energy of inference, beside a conventional network."""

import itertools
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.markup import escape
from rich.table import Table

from plif_lightning.cli.trained import read_trained
from plif_lightning.deploy.conventional import ConventionalNetwork, int8_session
from plif_lightning.deploy.energy import EnergyCounters, Measured
from plif_lightning.deploy.energy import measure as repeat
from plif_lightning.deploy.engine import deployed
from plif_lightning.deploy.engines import Engine
from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork
from plif_lightning.network.output import mean_votes
from plif_lightning.runtime.console import Console, in_few_digits
from plif_lightning.runtime.surroundings import processor

if TYPE_CHECKING:
    from torch import Tensor

    from plif_lightning.deploy.costs import Cost

_SPIKING, _CONVENTIONAL = "spiking", "conventional"


def measure(given: Namespace, net: SpikingNetwork, x: "Tensor", label: "Tensor", estimated: "Cost") -> None:
    """Print time and energy of a sample, of the deployed network and of a conventional one.

    Args:
        given: conventional, engine, seconds and threads; None for their defaults.
        net: the spiking network.
        x: test samples, static images [N, C, H, W] or frames [T, N, C, H, W].
        label: their classes [N].
        estimated: the spiking network's cost, which is shown beside.
    """
    threads = 1 if given.threads is None else given.threads
    engine: Engine = given.engine or "int8"
    try:
        counters, notes = EnergyCounters(), []
    except UserError as error:
        counters, notes = None, [str(error)]
    torch.set_num_threads(threads)
    spiking = deployed(net, engine, x)
    other, note = _conventional(given.conventional, net)
    frames = _frames_for(other, x)
    conventional = int8_session(other, frames.flatten(0, 1), threads)
    single = [x[i : i + 1] if x.dim() == 4 else x[:, i : i + 1] for i in range(len(label))]
    calls: dict[str, tuple[list[Tensor], Callable[[Tensor], Tensor]]] = {
        _SPIKING: (single, lambda one: mean_votes(spiking(one))),
        _CONVENTIONAL: (
            [frames[:, i] for i in range(len(label))],
            lambda one: torch.stack([conventional(frame[None]) for frame in one]).mean(0),
        ),
    }
    right = {
        name: sum(int(call(one).argmax() == label[i]) for i, one in enumerate(samples))
        for name, (samples, call) in calls.items()
    }
    seconds = 5.0 if given.seconds is None else given.seconds
    found, idle = repeat({name: _in_turn(*call) for name, call in calls.items()}, seconds, counters=counters)
    titles = {_SPIKING: f"spiking, engine {engine}", _CONVENTIONAL: "conventional, 8 bits, onnxruntime"}
    estimates = {
        _SPIKING: in_few_digits(estimated.total("with_memory", True) / 1e6, 1),
        _CONVENTIONAL: in_few_digits(estimated.total("conventional", True) / 1e6, 1) if _same(other, net) else "",
    }
    table = _table(f"Measured at batch 1, {threads} thread{'s' * (threads > 1)}, {processor()}", counters is not None)
    for name, one in found.items():
        table.add_row(
            *(titles[name], f"{right[name]} of {len(label)}", f"{1000 * one.seconds:.3f}", *_energies(one)),
            estimates[name],
        )
    console = Console()
    console.print(table)
    if idle is not None:
        notes.append(f"The idle machine drew {idle:.1f} W. Energy is that of all processor packages.")
    notes += [note, "Estimate: 8 bits, 45 nm, memory included, weights reused."]
    notes.append("The conventional network's 8-bit ranges were taken from the same samples.")
    for sentence in notes:
        if sentence:
            console.print(escape(sentence[0].upper() + sentence[1:]), highlight=False)


def _in_turn(samples: "list[Tensor]", call: "Callable[[Tensor], Tensor]") -> Callable[[], object]:
    """A call that takes the next sample each time."""
    turn = itertools.cycle(samples)
    return lambda: call(next(turn))


def _frames_for(net: ConventionalNetwork, x: "Tensor") -> "Tensor":
    """Frames [T, N, C, H, W] of a conventional network, which decides by the mean of its logits.

    Those of the spiking network if it was trained on as many; otherwise one, with all events of a sample.

    Raises:
        UserError: it was trained on another number of frames.
    """
    if x.dim() == 4:
        return x.float()[None]
    steps = net.time_steps or 1
    if steps not in (1, len(x)):
        raise UserError(
            f"the network of --conventional was trained on {steps} frames a sample, and the spiking one has {len(x)}: "
            f"train it with --data.time_steps 1 or {len(x)}."
        )
    return x.float() if steps == len(x) else x.float().sum(0, keepdim=True)


def _table(title: str, with_energy: bool) -> Table:
    table = Table(title=title, title_justify="left")
    energies = ["mJ", "mJ above idle", "W"] if with_energy else []
    table.add_column("network", overflow="fold")
    for column in ("right", "ms a sample", *energies, "estimate, uJ"):
        table.add_column(column, justify="right")
    return table


def _energies(one: Measured) -> list[str]:
    if one.joules is None or one.joules_above_idle is None or one.watts is None:
        return []
    return [f"{1000 * one.joules:.3f}", f"{1000 * one.joules_above_idle:.3f}", f"{one.watts:.1f}"]


def _conventional(path: Path | None, net: SpikingNetwork) -> tuple[ConventionalNetwork, str]:
    """The conventional network of a checkpoint, or an untrained one of the same shape; a sentence on it."""
    if path is None:
        if not isinstance(net, SpikingNetwork):
            raise UserError("--measure takes the conventional network's shape from a structure: pass --conventional.")
        made = ConventionalNetwork(str(net.structure), net.input_shape, net.num_classes)
        return made.eval(), (
            "The conventional network is untrained, so only its time and energy count. To compare at equal accuracy, "
            "train one (docs/howto/deploy.md) and pass --conventional CKPT."
        )
    found: Any = read_trained(path).net
    if not isinstance(found, ConventionalNetwork):
        raise UserError(f"--conventional must be a ConventionalNetwork's checkpoint, got a {type(found).__name__}'s.")
    for name in ("input_shape", "num_classes"):
        own, wanted = getattr(found, name), getattr(net, name)
        if tuple(own) != tuple(wanted) if name == "input_shape" else own != wanted:
            raise UserError(f"--conventional {path} has {name} {own}, but the spiking network {wanted}.")
    note = "" if _same(found, net) else f"the conventional network has another structure: {found.structure}."
    return found.eval(), note


def _same(conventional: ConventionalNetwork, net: SpikingNetwork) -> bool:
    """True if both networks have one structure; one of a user's own has none."""
    return isinstance(net, SpikingNetwork) and str(conventional.structure) == str(net.structure)
