"""Export a trained network to formats that other programs read, with a manifest."""

import contextlib
import copy
import io
import itertools
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from plif_lightning.deploy.folding import fold
from plif_lightning.deploy.nir import readers, write_nir
from plif_lightning.errors import UserError
from plif_lightning.network import SpikingNetwork, step, use_backend
from plif_lightning.network.checkpoint import (
    EXPORTED,
    checkpoint_file,
    class_names_in,
    configuration_in,
    load_checkpoint,
    network_in,
)
from plif_lightning.network.fingerprint import fingerprint
from plif_lightning.network.output import Integral
from plif_lightning.network.own import description, neurons_of
from plif_lightning.network.stepping import STATEFUL
from plif_lightning.neurons import Neuron
from plif_lightning.neurons.carry import packed, unpacked
from plif_lightning.runtime.program import needed_by

FORMATS = ("network", "pt2", "onnx", "nir")
Input = Literal["images", "frames"]
# ONNX opset that all current runtimes support.
_OPSET = 20
# Parts of a checkpoint that are only needed to resume training.
_TRAINING_STATE = ("optimizer_states", "lr_schedulers", "loops", "callbacks", "current_model_state", "averaging_state")


class OneStep(nn.Module):
    """One time-step of a network with its states as inputs and outputs, for exporters.

    Takes a frame [N, C, H, W] and the states [N, *] of each layer of neurons, in the order of `states_of`. Returns the
    votes [N, num_classes] and the states after the step, in the same order.
    """

    def __init__(self, net: SpikingNetwork) -> None:
        super().__init__()
        self.net = net
        stateful = [(name, part) for name, part in net.named_modules() if isinstance(part, STATEFUL)]
        self.names = {name: len(part.equations.state) if isinstance(part, Neuron) else 1 for name, part in stateful}

    def forward(self, frame: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        given = iter(states)
        before = {name: packed(tuple(itertools.islice(given, number))) for name, number in self.names.items()}
        votes, after = step(self.net, frame, before)
        return votes, *itertools.chain.from_iterable(unpacked(after[name]) for name in self.names)


def states_of(net: nn.Module) -> dict[str, float]:
    """The states of every layer of neurons before the first step, by name: `v_conv1`, its potential, and so on.

    That of a readout's leaky integral is `v_` and the name of its module.
    """
    names = {part: name for name, part in neurons_of(net)}
    found: dict[str, float] = {}
    for name, part in net.named_modules():
        if isinstance(part, Neuron):
            starts = part.equations.start(part.constants)
            for state, start in zip(part.equations.state, starts, strict=True):
                found[f"{state}_{names[part].replace('.', '_')}"] = start
        elif isinstance(part, Integral):
            found[f"v_{name.replace('.', '_')}"] = 0.0
    return found


def _reference(net: nn.Module) -> Any:
    """The folded network on the reference backend, which exporters can trace, without gradients."""
    net = fold(net) if isinstance(net, SpikingNetwork) else copy.deepcopy(net).eval()
    return use_backend(net, "reference").requires_grad_(False)


def _example(net: SpikingNetwork, static: bool) -> Tensor:
    return torch.rand(2, *net.input_shape) if static else torch.rand(net.time_steps, 2, *net.input_shape)


def to_export(net: nn.Module, static: bool) -> torch.export.ExportedProgram:
    """Trace the folded network into a program of PyTorch operators, for any number of samples.

    Args:
        net: trained network; of a user-defined one, a whole call.
        static: True for static images [N, C, H, W], False for frames [T, N, C, H, W].
    """
    batch = torch.export.Dim("batch", min=1)
    made = _reference(net)
    return _traced(made, (_example(made, static),), ({0 if static else 1: batch},))


def to_export_step(net: SpikingNetwork) -> torch.export.ExportedProgram:
    """Trace one time-step of the folded network, see `OneStep`."""
    made = _reference(net)
    batch = torch.export.Dim("batch", min=1)
    frame = torch.rand(2, *made.input_shape)
    states = tuple(torch.zeros_like(v) for layer in step(made, frame)[1].values() for v in unpacked(layer))
    shapes = ({0: batch}, *([tuple({0: batch} for _ in states)] if states else []))
    return _traced(OneStep(made), (frame, *states), shapes)


def _traced(net: nn.Module, given: tuple[Tensor, ...], shapes: Any) -> torch.export.ExportedProgram:
    # User-defined layers may compare sizes in ways that PyTorch cannot prove for every batch: the program then checks.
    return torch.export.export(net, given, dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True)


def save_onnx(
    program: torch.export.ExportedProgram,
    file: Path,
    names: tuple[list[str], list[str]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a program as ONNX, with the names of its inputs and outputs, and metadata.

    Raises:
        UserError: a package is missing.
    """
    with needed_by("ONNX"):
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    inputs, outputs = names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's exporter warns about its own internals
        made = torch.onnx.export(
            program, dynamo=True, opset_version=_OPSET, verbose=False, input_names=inputs, output_names=outputs
        )
    assert made is not None
    made.model.metadata_props.update(metadata or {})
    made.save(file)


def write_pt2(net: SpikingNetwork, static: bool, folder: Path) -> None:
    """Write network.pt2; see `export`."""
    program = to_export(net, static)
    whole = io.BytesIO()  # torch.export.save warns about our file objects
    torch.export.save(program, whole)
    (folder / "network.pt2").write_bytes(whole.getbuffer())


def write_onnx(net: SpikingNetwork, static: bool, folder: Path) -> None:
    """Write network.onnx and, of a network from a structure, step.onnx; see `export`."""
    save_onnx(to_export(net, static), folder / "network.onnx", (["x"], ["votes"]))
    if isinstance(net, SpikingNetwork):
        first = states_of(net)
        names = ["frame", *first], ["votes", *(f"{name}_after" for name in first)]
        metadata = {f"before_the_first_step.{name}": str(v_reset) for name, v_reset in first.items()}
        save_onnx(to_export_step(net), folder / "step.onnx", names, metadata)


_WRITERS: dict[str, Callable[[SpikingNetwork, bool, Path], None]] = {
    "pt2": write_pt2, "onnx": write_onnx, "nir": lambda net, static, folder: write_nir(net, folder / "network.nir")
}  # fmt: skip


def _folded_checkpoint(checkpoint: dict[str, Any], config: dict[str, Any], net: SpikingNetwork) -> dict[str, Any]:
    """A checkpoint of the folded `net` that `test` and `predict` accept like the original one."""
    kept = {key: value for key, value in checkpoint.items() if key not in _TRAINING_STATE}
    if not isinstance(net, SpikingNetwork):
        return kept
    others = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("network.")}
    kept["state_dict"] = others | {f"network.{name}": value for name, value in net.state_dict().items()}
    kept["hyper_parameters"] = {**checkpoint["hyper_parameters"], "folded": True}
    kept["fingerprint"] = fingerprint(net)
    if config:
        config = {**config, "model": {**config["model"], "folded": True}}
        kept["cli_config"] = yaml.safe_dump(config, sort_keys=False)
        kept["settings"] = {**kept.get("settings", {}), "model.folded": True}
    return kept


def _takes_images(how: Mapping[str, Any], formats: Sequence[str], given: Input | None) -> bool:
    """True if inputs are static images [N, C, H, W], False for frames [T, N, C, H, W].

    Args:
        how: `preprocessing` of the data module.
        formats: see `export`.
        given: what the caller says.

    Raises:
        UserError: a format needs to know, but neither the data module nor the caller says.
    """
    if given is None and not how.keys() & {"scale", "slicing"} and {*formats} - {"network", "nir"}:
        raise UserError("the data module does not say what its network takes: pass --input=images or --input=frames.")
    return "slicing" not in how if given is None else given == "images"


def export(
    checkpoint_path: str | Path, out: str | Path, formats: Sequence[str] = ("network",), takes: Input | None = None
) -> dict[str, int]:
    """Export a checkpoint's network, with BN folded, into a folder.

    Always writes `network.ckpt`, which `load_network(out)` and `test --ckpt_path` read, and the manifest `export.json`:
    preprocessing, class names, initial potentials of a stream, and which simulators reproduce the NIR graph. Optional:
    `network.pt2` (torch.export; loads without this package), `network.onnx` and `step.onnx`, and `network.nir`.

    Args:
        checkpoint_path: a checkpoint that `fit` wrote.
        out: the folder; replaces an earlier export, in its formats too.
        formats: some of FORMATS.
        takes: `images` [N, C, H, W] or `frames` [T, N, C, H, W]; needed if the data module is not part of this package.

    Returns:
        Size of each file by name [bytes].

    Raises:
        CheckpointError: the checkpoint cannot be read.
        UserError: a format is unknown or does not support the network; a package is missing; the kind of input is
            unknown; the folder holds files that are not an export's.
    """
    out = Path(out)
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UserError(f"--format must be some of {', '.join(FORMATS)}, got {', '.join(unknown)}.")
    if out.exists() and not (out / EXPORTED).is_file() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out} is not what export wrote: --out must name a new folder, or that of an earlier export.")
    there = [name for name in FORMATS if (out / f"network.{name}").is_file()]  # they would be of another network
    others = list(dict.fromkeys(name for name in (*formats, *there) if name != "network"))
    checkpoint_path = checkpoint_file(Path(checkpoint_path))
    checkpoint = load_checkpoint(checkpoint_path)
    config = configuration_in(checkpoint)
    net = network_in(checkpoint, checkpoint_path)
    if isinstance(net, SpikingNetwork):
        net = fold(net)
        if net.inputs.name != "direct" and others:
            raise UserError(f"input_encoder={net.inputs.name!r} cannot be exported to {' or '.join(others)}.")
    data = config.get("data", {})
    static = _takes_images(checkpoint.get("preprocessing") or {}, formats, takes)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with _replaced(out) as folder:
        torch.save(_folded_checkpoint(checkpoint, config, net), folder / "network.ckpt")
        for name in others:
            _WRITERS[name](net, static, folder)
        facts = {"made_from": checkpoint_path.name, **_facts(net, static, checkpoint, data, formats)}
        (folder / EXPORTED).write_text(json.dumps(facts, indent=1))
    return {file.name: file.stat().st_size for file in sorted(out.iterdir()) if file.name != EXPORTED}


@contextlib.contextmanager
def _replaced(out: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `out` once the block has ended without an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}", dir=out.parent) as beside:
        made, before = Path(beside) / "made", Path(beside) / "before"
        made.mkdir()
        yield made
        if out.exists():
            out.rename(before)
        made.rename(out)


def _facts(
    net: SpikingNetwork, static: bool, checkpoint: dict[str, Any], data: dict[str, Any], formats: Sequence[str]
) -> dict[str, Any]:
    """What the manifest says of a network, its data set and its classes."""
    return {
        "data": str(data["class_path"]).rsplit(".", 1)[-1] if "class_path" in data else None,
        "class_names": class_names_in(checkpoint, net.num_classes),
        "input": ["N", *net.input_shape] if static else [net.time_steps, "N", *net.input_shape],
        "preprocessing": checkpoint.get("preprocessing"),
        "time_steps": net.time_steps,
        "structure": description(net),
        "states_before_the_first_step": states_of(net),
        **({"nir_readers": readers(net)} if "nir" in formats else {}),
    }
