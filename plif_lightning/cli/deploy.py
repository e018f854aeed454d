"""`export` and `cost` of a trained network. Only `cost` loads Lightning, for its data set."""

import math
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from plif_lightning.cli.parser import PlainParser, option_names
from plif_lightning.cli.trained import checkpoint_parser, read_to_test
from plif_lightning.errors import UserError, require_count

if TYPE_CHECKING:
    from torch import Tensor, nn

    from plif_lightning.deploy.costs import Cost
    from plif_lightning.network import SpikingNetwork


def _export_parser() -> PlainParser:
    parser = checkpoint_parser("export", "Export a checkpoint: BN folded into its weights, for other programs.")
    parser.add_argument("--out", type=Path, required=True, help="the folder")
    parser.add_argument(
        "--format",
        action="append",
        default=[],
        help="network (always written), pt2 (torch.export), onnx, nir, or pretrained (safetensors and a model card, "
        "not folded, to fine-tune or share); may be repeated",
    )
    parser.add_argument(
        "--round_delays", action="store_true", help="make learned delays whole numbers, so that spikes stay spikes"
    )
    parser.add_argument("--license", help="with --format pretrained: licence of the weights, such as mit, for the card")
    parser.add_argument(
        "--input",
        choices=["images", "frames"],
        help="input of the network, images [N, C, H, W] or frames [T, N, C, H, W] (default: that of its data set)",
    )
    return parser


def _cost_parser() -> PlainParser:
    parser = checkpoint_parser("cost", "Estimate operations, memory traffic and energy.")
    parser.add_argument("--data.root", dest="root", help="folder of the data sets, if it has moved")
    parser.epilog = "--data NAME and --data.KEY VALUE, as in prepare: the data set, if the checkpoint names none."
    parser.add_argument(
        "--samples", type=int, default=32, help="test samples, evenly spaced, to measure firing on (default: 32)"
    )
    parser.add_argument("--out", type=Path, help="write a csv file with a row for each layer")
    return parser


_PRETRAINED = "pretrained"


def export(argv: list[str]) -> int:
    """Write the files and print their sizes."""
    options = _export_parser().parse_args(argv)
    formats = options.format or ["network"]
    from plif_lightning.deploy.exporting import export as write
    from plif_lightning.deploy.folding import round_delays
    from plif_lightning.network import load_network

    rounded = round_delays(load_network(options.ckpt_path)) if options.round_delays else None
    formats_of_network = [name for name in formats if name != _PRETRAINED]
    files = write(options.ckpt_path, options.out, formats_of_network or ["network"], options.input, rounded)
    if _PRETRAINED in formats:
        net = load_network(options.ckpt_path) if rounded is None else rounded
        files |= _save_pretrained(net, options.ckpt_path, options.out, options.license)
    for name, size in files.items():
        print(f"{options.out / name}  {size / 2**20:,.1f} MiB")
    return 0


def _save_pretrained(net: "nn.Module", path: Path, out: Path, licence: str | None) -> dict[str, int]:
    """Write the network with the card of its run, and return the sizes of the files."""
    from plif_lightning.analysis.measured import standard_error
    from plif_lightning.analysis.select import data_title
    from plif_lightning.analysis.words import source
    from plif_lightning.network import SpikingNetwork
    from plif_lightning.network.storage.checkpoint import checkpoint_file
    from plif_lightning.network.storage.pretrained import CARD, CONFIG, WEIGHTS, save_pretrained
    from plif_lightning.runs.command import commands
    from plif_lightning.runs.folder import RunFolder
    from plif_lightning.runs.run import read_run

    if not isinstance(net, SpikingNetwork):
        raise UserError(
            f"--format {_PRETRAINED} needs a structure, and the network is a user-defined {type(net).__name__}."
        )
    folder = RunFolder.of_checkpoint(checkpoint_file(path))
    card = {} if licence is None else {"license": licence}
    run = read_run(folder.path)
    if run.config:
        calls = "; ".join(f"python main.py {shlex.join(call)}" for call in commands(run))
        of_run = {"data": f"{data_title(run)}, {source(run)}", "epochs": str(run.epochs), "command": calls}
        if run.accuracy is not None:
            selection = (
                "best epoch on the test set" if run.protocol == "A" else "epoch chosen on held-out training samples"
            )
            deviation = standard_error(run)
            error = "" if deviation is None else f" \u00b1 {100 * deviation:.2f} (standard error)"
            of_run |= {
                "protocol": f"{run.protocol}: {selection}",
                "accuracy": f"{100 * run.accuracy:.2f} %{error}, on the test set",
            }
        card |= {name: value for name, value in of_run.items() if value}
    save_pretrained(net, out, card)
    return {name: (out / name).stat().st_size for name in (WEIGHTS, CONFIG, CARD)}


_COLUMNS = (
    "layer", "firing [%]", "dense [M]", "MAC [M]", "AC [M]", "parameters [k]", "state [k]", "moved [MB]", "fp32 [uJ]",
    "int8, fetched [uJ]", "ANN, fetched [uJ]", "int8, reused [uJ]", "ANN, reused [uJ]",
)  # fmt: skip
# Property of a layer's cost, unit, and number of digits.
_NUMBERS = (
    ("dense", 1e6, 2), ("macs", 1e6, 2), ("accumulates", 1e6, 2), ("parameters", 1e3, 1), ("state", 1e3, 1),
    ("traffic", 1e6, 1), ("arithmetic", 1e6, 1),
)  # fmt: skip
# Method of a layer's cost, and its argument `reuse`.
_ENERGIES = tuple((name, reuse) for reuse in (False, True) for name in ("with_memory", "conventional"))


def cost(argv: list[str]) -> int:
    """Print the cost of each layer, write it into a file if given, and return the exit status."""
    parser = _cost_parser()
    options, named = parser.parse_known_args(argv)
    if named and not {"--data", "--config", "-c"} & option_names(named):
        parser.error(f"unrecognized arguments: {' '.join(named)}")
    require_count("--samples", options.samples)
    from plif_lightning.deploy.costs import cost as count
    from plif_lightning.network.user_networks import description

    net, x, _ = read_to_test(options.ckpt_path, options.root, options.samples, named)
    network_cost = count(net, x)
    rows = _cost_rows(network_cost)
    _print_cost(network_cost, rows, description(net))
    _print_latency(net, x[:, :1] if x.ndim == len(net.input_shape) + 2 else x[:1])
    if options.out is not None:
        import csv

        from plif_lightning.runtime.files import atomic_write

        with atomic_write(options.out) as file:
            numbers = ([name, *("" if math.isnan(n) else f"{n:.6g}" for n in of)] for name, *of in rows)
            csv.writer(file).writerows([_COLUMNS, *numbers])
        print(options.out)
    return 0


def _print_latency(net: "SpikingNetwork", x: "Tensor") -> None:
    """Print the time of a sample in the network, and in its engines if it has them."""
    import torch

    from plif_lightning.deploy import deployed
    from plif_lightning.runtime.process import milliseconds, processor

    forms: dict[str, Any] = {"as trained": net}
    with suppress(UserError):  # a user-defined network has no engines
        forms |= {f"--engine {engine}": deployed(net, engine) for engine in ("float32", "int8")}
    with torch.no_grad():
        times = [f"{in_few_digits(milliseconds(partial(form, x)), 2)} {name}" for name, form in forms.items()]
    threads = f"{torch.get_num_threads()} threads" if torch.get_num_threads() > 1 else "1 thread"
    print(f"Latency of a sample on this machine [ms]: {', '.join(times)} ({processor()}, {threads}).")


def _cost_rows(network_cost: "Cost") -> list[tuple[Any, ...]]:
    """Name and numbers of each layer, and of all layers in the last row, in the units of _COLUMNS.

    Modules that were not counted are rows without numbers.
    """
    layers = [
        (replace(network_cost, layers=(layer,)), layer.layer, 100 * layer.firing) for layer in network_cost.layers
    ]
    rows = [
        (
            *first,
            *(of.total(name) / unit for name, unit, _ in _NUMBERS),
            *(of.total(*energy) / 1e6 for energy in _ENERGIES),
        )
        for of, *first in [*layers, (network_cost, "all", math.nan)]
    ]
    rows[-1:-1] = [(f"{name}, not counted", *[math.nan] * (len(_COLUMNS) - 1)) for name in network_cost.not_counted]
    return rows


def in_few_digits(value: float, digits: int) -> str:
    """`1,048.6`; a small number with two digits that count, as `0.0083`, and not 0.0; empty if there is none."""
    if math.isnan(value):
        return ""
    return f"{value:.2g}" if 0 < value < 10.0**-digits else f"{value:,.{digits}f}"


def _print_cost(network_cost: "Cost", rows: Sequence[Sequence[Any]], structure: str) -> None:
    """Print the table, and the ratios of energy to conventional networks."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=f"{escape(structure)}, T = {network_cost.time_steps}, a sample, measured on {network_cost.samples}"
    )
    for column in _COLUMNS:
        table.add_column(escape(column), justify="left" if column == "layer" else "right", no_wrap=column == "layer")
    digits = [1, *(digits for _, _, digits in _NUMBERS), *[1] * len(_ENERGIES)]
    for i, (name, *values) in enumerate(rows):
        table.add_row(name, *map(in_few_digits, values, digits), end_section=i == len(rows) - 2)
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    arithmetic = network_cost.total("arithmetic") / network_cost.total("arithmetic_dense")
    fetched, reused = (
        network_cost.total("with_memory", r) / network_cost.total("conventional", r) for r in (False, True)
    )
    steps = max(layer.inputs for layer in network_cost.layers)
    inputs = "one frame" if steps == 1 else f"each of {steps} steps"
    console.print(
        f"Energies of a 45 nm process (Horowitz 2014). Arithmetic alone: {arithmetic:.2f} of a float32 network that "
        f"skips nothing over T steps. With memory, 8 bits, against a conventional network of this shape on {inputs} "
        f"(ANN): {fetched:.2f} times its energy if every operation fetches its weight, {reused:.2f} "
        "times if weights are reused. Above 1 the conventional network wins."
    )
