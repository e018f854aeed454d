"""Export a trained network to formats that other programs read, with a manifest."""

import contextlib
import io
import itertools
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from plif_lightning.deploy.folding import for_evaluation, has_structure
from plif_lightning.deploy.nir import readers_of, write_nir
from plif_lightning.deploy.scan import scan_of
from plif_lightning.errors import UserError
from plif_lightning.layers.recurrent import is_recurrent
from plif_lightning.network import SpikingNetwork, step, use_backend
from plif_lightning.network.network import DEFAULTS
from plif_lightning.network.stepping import unwrapped
from plif_lightning.network.storage.checkpoint import (
    EXPORTED,
    checkpoint_file,
    class_names_in,
    configuration_in,
    from_data_in,
    load_checkpoint,
    network_in,
)
from plif_lightning.network.storage.fingerprint import fingerprint
from plif_lightning.network.user_networks import description, neurons_of, user_network
from plif_lightning.neurons import Neuron, describe_neuron
from plif_lightning.runtime.input_spec import InputSpec
from plif_lightning.runtime.program import needed_by
from plif_lightning.signals.states import as_tuple, from_tuple, stateful_modules

Input = Literal["images", "frames"]
# ONNX opset that all current runtimes support.
_OPSET = 20
# A line of a forward in the errors of PyTorch's exporters.
_SOURCE_LINE = re.compile(r'File "([^"]+)", line (\d+)')
# Parts of a checkpoint that are only needed to resume training.
_TRAINING_STATE = ("optimizer_states", "lr_schedulers", "loops", "callbacks", "current_model_state", "averaging_state")


class SingleStep(nn.Module):
    """A time-step of a network with its states as inputs and outputs, for exporters.

    Takes a frame [N, C, H, W] and the states [N, *] of each layer that carries any, in the order of `states_of`.
    Returns the votes [N, num_classes] and the states after the step, in the same order.
    """

    def __init__(self, net: SpikingNetwork) -> None:
        super().__init__()
        self.net = net
        stateful: dict[str, Any] = stateful_modules(net)
        self.names = {name: len(module.carries) for name, module in stateful.items()}

    def forward(self, frame: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        values_of_states = iter(states)
        before = {
            name: from_tuple(tuple(itertools.islice(values_of_states, number))) for name, number in self.names.items()
        }
        votes, after = step(self.net, frame, before)
        return votes, *itertools.chain.from_iterable(as_tuple(after[name]) for name in self.names)


def states_of(net: nn.Module) -> dict[str, float]:
    """The states before the first step, by name: `v_conv1`, the potential of a layer of neurons, and so on.

    That of a readout's leaky integral is `v_` and the name of its module; the spikes that a recurrent layer sees are
    `s_` and the name of its weight; the inputs that a delay holds are `x_` and the name of its module.
    """
    names = {module: name for name, module in neurons_of(net)}
    initial: dict[str, float] = {}
    module: Any
    for path, module in stateful_modules(net).items():
        name = names.get(module, path).replace(".", "_")
        start = module.equations.start(module.constants) if isinstance(module, Neuron) else [0.0] * len(module.carries)
        initial |= {f"{state}_{name}": value for state, value in zip(module.carries, start, strict=True)}
    return initial


def _reference(net: nn.Module) -> Any:
    """The folded network on the reference backend, which exporters can trace, without gradients."""
    return use_backend(for_evaluation(net), "reference").requires_grad_(False)


def _example(net: SpikingNetwork, static: bool) -> Tensor:
    return torch.rand(2, *net.input_shape) if static else torch.rand(net.time_steps, 2, *net.input_shape)


def to_export(net: nn.Module, static: bool) -> torch.export.ExportedProgram:
    """Trace the folded network into a program of PyTorch operators, for any number of samples.

    Args:
        net: trained network; of a user-defined network, a complete call.
        static: True for static images [N, C, H, W], False for frames [T, N, C, H, W].
    """
    batch = torch.export.Dim("batch", min=1)
    reference = _reference(net)
    return _trace(reference, (_example(reference, static),), ({0 if static else 1: batch},))


def to_export_step(net: SpikingNetwork) -> torch.export.ExportedProgram:
    """Trace a time-step of the folded network, see `SingleStep`."""
    reference = _reference(net)
    batch = torch.export.Dim("batch", min=1)
    frame = torch.rand(2, *reference.input_shape)
    states = tuple(torch.zeros_like(v) for layer in step(reference, frame)[1].values() for v in as_tuple(layer))
    shapes = ({0: batch}, *([tuple({0: batch} for _ in states)] if states else []))
    return _trace(SingleStep(reference), (frame, *states), shapes)


def _trace(net: nn.Module, inputs: tuple[Tensor, ...], shapes: Any) -> torch.export.ExportedProgram:
    # User-defined layers may compare sizes in ways that PyTorch cannot prove for every batch: the program then checks.
    return torch.export.export(net, inputs, dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True)


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
        warnings.simplefilter("ignore")  # PyTorch's exporter warns about its internals
        onnx_program = torch.onnx.export(
            program, dynamo=True, opset_version=_OPSET, verbose=False, input_names=inputs, output_names=outputs
        )
    assert onnx_program is not None
    graph = onnx_program.model.graph
    sizes_of_inputs = (str(size) for value in graph.inputs for size in value.shape or () if not isinstance(size, int))
    symbol = next(sizes_of_inputs, "batch")
    for value in (*graph.inputs, *(output for node in graph.all_nodes() for output in node.outputs)):
        if value.shape is not None:
            sizes = [size if isinstance(size, int) else str(size).replace(symbol, "batch") for size in value.shape]
            value.shape = type(value.shape)(sizes)
    onnx_program.model.metadata_props.update(metadata or {})
    onnx_program.save(file)


def write_pt2(net: SpikingNetwork, static: bool, folder: Path) -> None:
    """Write network.pt2; see `export`."""
    program = to_export(net, static)
    buffer = io.BytesIO()  # torch.export.save warns about our file objects
    torch.export.save(program, buffer)
    (folder / "network.pt2").write_bytes(buffer.getbuffer())


def write_onnx(net: SpikingNetwork, static: bool, folder: Path) -> None:
    """Write network.onnx and, of a network from a structure, step.onnx; see `export`."""
    if has_structure(net):
        first = states_of(net)
        names = ["frame", *first], ["votes", *(f"{name}_after" for name in first)]
        metadata = {f"before_the_first_step.{name}": str(initial) for name, initial in first.items()}
        save_onnx(to_export_step(net), folder / "step.onnx", names, metadata)
        if not static and is_recurrent(net):
            import onnx

            step_alone = onnx.load(folder / "step.onnx")
            onnx.save(scan_of(step_alone, first, net.voting.is_last_step), folder / "network.onnx")
            return
    save_onnx(to_export(net, static), folder / "network.onnx", (["x"], ["votes"]))


_WRITERS: dict[str, Callable[[SpikingNetwork, bool, Path], None]] = {
    "pt2": write_pt2, "onnx": write_onnx, "nir": lambda net, static, folder: write_nir(net, folder / "network.nir")
}  # fmt: skip
FORMATS = ("network", *_WRITERS)


def _exported_checkpoint(checkpoint: dict[str, Any], config: dict[str, Any], net: nn.Module) -> dict[str, Any]:
    """A checkpoint of `net` that `test` and `predict` accept like the original."""
    exported = {key: value for key, value in checkpoint.items() if key not in _TRAINING_STATE}
    other_weights = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("network.")}
    exported["state_dict"] = other_weights | {f"network.{name}": value for name, value in net.state_dict().items()}
    exported["fingerprint"] = fingerprint(net)
    if not has_structure(net):
        if config and exported["fingerprint"] != checkpoint["fingerprint"]:  # no argument of its class says how it is
            config = {**config, "model": _without_network(config["model"])}
            exported["cli_config"] = yaml.safe_dump(config, sort_keys=False)
        return exported
    stored = _without_network(checkpoint["hyper_parameters"])
    as_trained = {**DEFAULTS, **stored}
    arguments = {**net.arguments, "neuron": describe_neuron(net.arguments["neuron"])}
    changed = {name: value for name, value in arguments.items() if value != as_trained.get(name)}
    exported["hyper_parameters"] = {**stored, **changed}
    if config:
        config = {**config, "model": {**_without_network(config["model"]), **changed}}
        exported["cli_config"] = yaml.safe_dump(config, sort_keys=False)
        of_changed = {f"model.{name}": value for name, value in changed.items()}
        exported["settings"] = {**checkpoint.get("settings", {}), **of_changed}
    return exported


def _without_network(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a task without those of a user-defined network."""
    return {name: value for name, value in arguments.items() if name != "network"}


def _takes_images(net: SpikingNetwork, spec: InputSpec, formats: Sequence[str], requested: Input | None) -> bool:
    """True if inputs are static images [N, C, H, W], False for frames [T, N, C, H, W] or sequences [T, N, F].

    Args:
        net: the network.
        spec: of the data that it was trained on.
        formats: that are written beside the network.
        requested: the caller's choice.

    Raises:
        UserError: a format needs to know, but neither the data module nor the caller says.
    """
    if requested is not None or len(net.input_shape) == 1:
        return requested == "images"
    if spec.kind is None and {*formats} - {"nir"}:
        raise UserError("the data module does not say what its network takes: pass --input images or frames (takes).")
    return spec.kind != "events"


def export(
    checkpoint_path: str | Path,
    out: str | Path,
    formats: Sequence[str] = ("network",),
    takes: Input | None = None,
    network: nn.Module | None = None,
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
        network: takes the place of the checkpoint's, with its own weights: such as one with rounded delays, or a
            user-defined network that was built in Python.

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
    written = list(dict.fromkeys(name for name in (*formats, *there) if name != "network"))
    checkpoint_path = checkpoint_file(Path(checkpoint_path))
    checkpoint = load_checkpoint(checkpoint_path)
    config = configuration_in(checkpoint)
    if network is None:
        network = network_in(checkpoint, checkpoint_path)
    else:
        network = user_network(unwrapped(network), from_data_in(checkpoint), {})
    net: Any = for_evaluation(network)
    if has_structure(net) and net.inputs.name != "direct" and written:
        raise UserError(f"input_encoder={net.inputs.name!r} cannot be exported to {' or '.join(written)}.")
    data = config.get("data", {})
    static = _takes_images(net, InputSpec.of(checkpoint.get("preprocessing")), written, takes)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with _replace_files(out) as folder:
        torch.save(_exported_checkpoint(checkpoint, config, net), folder / "network.ckpt")
        for name in written:
            with _named_errors(net, name):
                _WRITERS[name](net, static, folder)
        metadata = {"made_from": checkpoint_path.name, **_metadata(net, static, checkpoint, data, written)}
        (folder / EXPORTED).write_text(json.dumps(metadata, indent=1))
    return {file.name: file.stat().st_size for file in sorted(out.iterdir()) if file.name != EXPORTED}


@contextlib.contextmanager
def _named_errors(net: nn.Module, name: str) -> Iterator[None]:
    """Say of which network an error of PyTorch's exporters is, whose traces name a user-defined network nowhere."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if has_structure(net):
            raise
        cause: BaseException = error
        while cause.__cause__ is not None:  # PyTorch's ONNX exporter wraps it in its advice
            cause = cause.__cause__
        reason = f"{type(cause).__name__}: {cause}".splitlines()[0].rstrip(".:")
        lines = [f" ({file}:{line})" for file, line in _SOURCE_LINE.findall(str(cause)) if "site-packages" not in file]
        raise UserError(
            f"PyTorch cannot export {type(net).__name__} to {name}: {reason}{''.join(lines[:1])}. Write it with other "
            f"operations, or leave out --format {name}; --format network takes any."
        ) from error


@contextlib.contextmanager
def _replace_files(out: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `out` once the block has ended without an error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}", dir=out.parent) as beside:
        new_files, before = Path(beside) / "made", Path(beside) / "before"
        new_files.mkdir()
        yield new_files
        if out.exists():
            out.rename(before)
        new_files.rename(out)


def _metadata(
    net: SpikingNetwork, static: bool, checkpoint: dict[str, Any], data: dict[str, Any], formats: Sequence[str]
) -> dict[str, Any]:
    """Manifest entries of a network, its data set and its classes."""
    return {
        "data": str(data["class_path"]).rsplit(".", 1)[-1] if "class_path" in data else None,
        "class_names": class_names_in(checkpoint, net.num_classes),
        "input": ["N", *net.input_shape] if static else [net.time_steps, "N", *net.input_shape],
        "preprocessing": checkpoint.get("preprocessing"),
        "time_steps": net.time_steps,
        "structure": description(net),
        **({"states_before_the_first_step": states_of(net)} if has_structure(net) else {}),
        **({"nir_readers": readers_of(net)} if "nir" in formats else {}),
    }
