"""Export a trained network to formats that other programs read, with a manifest."""

import contextlib
import copy
import io
import itertools
import json
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from plif_lightning.deploy.folding import fold
from plif_lightning.deploy.layers import overrides_containers, spiking_layers, weighted
from plif_lightning.deploy.nir import readers, to_nir
from plif_lightning.deploy.weights import LARGEST, quantised
from plif_lightning.errors import UserError
from plif_lightning.kernels.layout import convolved
from plif_lightning.network import SpikingNetwork, step, use_backend
from plif_lightning.network.blocks import refuses_block
from plif_lightning.network.loading import (
    EXPORTED,
    checkpoint_file,
    class_names_in,
    configuration_in,
    load_checkpoint,
    network_in,
)
from plif_lightning.network.output import Integral
from plif_lightning.network.own import description, neurons_of
from plif_lightning.network.parts import parts_of
from plif_lightning.network.pretrained import CARD, is_own_card
from plif_lightning.network.stepping import STATEFUL, refuses_steps
from plif_lightning.neurons import Neuron
from plif_lightning.neurons.carry import packed, unpacked
from plif_lightning.runtime.extras import needed_by
from plif_lightning.runtime.files import sha256_of, written_whole

_log = logging.getLogger(__name__)

FORMATS = ("network", "pt2", "onnx", "onnx_int8", "nir")
Input = Literal["images", "frames"]
# ONNX opset that all current runtimes support.
_OPSET = 20
# Temporary folders older than this belong to killed exports [s].
_STALE_AFTER = 24 * 3600
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
                found[_unused(f"{state}_{names[part].replace('.', '_')}", found)] = start
        elif isinstance(part, Integral):
            found[_unused(f"v_{name.replace('.', '_')}", found)] = 0.0
    return found


def _unused(name: str, taken: Collection[str]) -> str:
    """A name that is not taken: `layer.1` and `layer_1` give the same one."""
    while name in taken:
        name += "_"
    return name


class _IntegerLayer(nn.Module):
    """A layer with binary input and 8-bit weights in ONNX's integer operators; it can be exported but not run.

    Integer sums are exact, so votes equal those of `deployed(net, "int8")` up to the rounding of float32 operations.
    """

    integers: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        integers, scale = quantised(layer.weight, LARGEST["int8"])
        self.conv = isinstance(layer, nn.Conv2d)
        self.attributes: dict[str, Any] = {}
        if isinstance(layer, nn.Conv2d):
            half = layer.kernel_size[0] // 2
            self.attributes = {"pads": [half] * 4, "strides": [*layer.stride]}
        self.outputs = len(scale)
        self.register_buffer("integers", integers if self.conv else integers.t().contiguous())
        self.register_buffer("scale", scale[:, None, None] if self.conv else scale)
        bias = None if layer.bias is None else layer.bias.detach()
        self.register_buffer("bias", bias[:, None, None] if self.conv and bias is not None else bias)

    def forward(self, x: Tensor) -> Tensor:
        spikes = x.to(torch.uint8)
        operator = "ConvInteger" if self.conv else "MatMulInteger"
        shape: tuple[Any, ...] = (*x.shape[:-1], self.outputs)
        if self.conv:
            stride = self.attributes["strides"][0]
            shape = (x.shape[0], self.outputs, *convolved((x.shape[2], x.shape[3]), stride))
        sums = torch.onnx.ops.symbolic(
            operator, (spikes, self.integers), self.attributes, dtype=torch.int32, shape=shape
        )
        y = sums.to(torch.float32) * self.scale
        return y if self.bias is None else y + self.bias


def _reference(net: SpikingNetwork, on_integers: bool = False) -> SpikingNetwork:
    """Return the folded network on the reference backend, which exporters can trace, without gradients."""
    spiking = spiking_layers(net) if on_integers else []
    net = fold(net) if isinstance(net, SpikingNetwork) else copy.deepcopy(net).eval()
    use_backend(net, "reference")
    for name in spiking:
        block = net.blocks()[name]
        layer: Any = block.get_submodule(weighted(block))
        setattr(block, weighted(block), _IntegerLayer(layer))
    return net.requires_grad_(False)


def _example(net: SpikingNetwork, static: bool) -> Tensor:
    return torch.rand(2, *net.input_shape) if static else torch.rand(net.time_steps, 2, *net.input_shape)


def to_export(net: SpikingNetwork, static: bool, on_integers: bool = False) -> torch.export.ExportedProgram:
    """Trace the folded network into a program of PyTorch operators, for any number of samples.

    Args:
        net: trained network.
        static: True for static images [N, C, H, W], False for frames [T, N, C, H, W].
        on_integers: use ONNX's integer operators for layers with binary input; PyTorch cannot run the result.
    """
    batch = torch.export.Dim("batch", min=1)
    shapes = ({0 if static else 1: batch},)
    with _naming_layers(net):
        return _traced(_reference(net, on_integers), (_example(net, static),), shapes)


def to_export_step(net: SpikingNetwork, on_integers: bool = False) -> torch.export.ExportedProgram:
    """Trace one time-step of the folded network, see `OneStep`."""
    net = _reference(net, on_integers)
    batch = torch.export.Dim("batch", min=1)
    frame = torch.rand(2, *net.input_shape)
    states = tuple(torch.zeros_like(v) for layer in step(net, frame)[1].values() for v in unpacked(layer))
    shapes = ({0: batch}, *([tuple({0: batch} for _ in states)] if states else []))
    with _naming_layers(net):
        return _traced(OneStep(net), (frame, *states), shapes)


def _traced(net: nn.Module, given: tuple[Tensor, ...], shapes: Any) -> torch.export.ExportedProgram:
    # Layers of one's own may compare sizes in ways that PyTorch cannot prove for every batch: the program then checks.
    return torch.export.export(net, given, dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True)


@contextlib.contextmanager
def _naming_layers(net: SpikingNetwork) -> Iterator[None]:
    """Turn an error of torch.export into one that names the layers of unknown kinds.

    Raises:
        UserError: the export of a network with such layers failed.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(net, SpikingNetwork):
            strange = [f"{name}: {why}" for name, block in net.layers().items() if (why := refuses_block(block))]
        else:
            strange = [
                f"{name or 'it'} is a {type(part).__name__}"
                for name, part in net.named_modules()
                if type(part).__module__.partition(".")[0] not in ("torch", "plif_lightning")
            ]
        if not strange:
            raise
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"torch.export cannot trace the network, in which {'; '.join(strange)} ({cause[:200]}). It traces only "
            "PyTorch operations, without control flow that depends on values."
        ) from error


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


def _write_pt2(net: SpikingNetwork, static: bool, folder: Path) -> None:
    program = to_export(net, static)
    whole = io.BytesIO()  # torch.export.save warns about our file objects
    torch.export.save(program, whole)
    with written_whole(folder / "network.pt2", "wb") as file:
        file.write(whole.getbuffer())


def write_onnx(net: SpikingNetwork, static: bool, folder: Path, on_integers: bool = False) -> None:
    """Write network.onnx and step.onnx, or the same with 8-bit weights; see `export`."""
    ending = "_int8.onnx" if on_integers else ".onnx"
    if on_integers and not spiking_layers(net):
        _log.warning("network%s has no weights of 8 bits: no layer is known to take spikes.", ending)
    save_onnx(to_export(net, static, on_integers), folder / f"network{ending}", (["x"], ["votes"]))
    in_steps = not isinstance(net, SpikingNetwork) or net.inputs.name == "direct"
    if in_steps and (not isinstance(net, SpikingNetwork) or overrides_containers(net) is not None):
        reason = refuses_steps(_reference(net), net.input_shape, net.time_steps)
        in_steps = reason is None
        if reason is not None:
            _log.warning("step%s is not written: %s.", ending, reason)
    if in_steps:
        first = states_of(net)
        names = ["frame", *first], ["votes", *(f"{name}_after" for name in first)]
        metadata = {f"before_the_first_step.{name}": str(v_reset) for name, v_reset in first.items()}
        save_onnx(to_export_step(net, on_integers), folder / f"step{ending}", names, metadata)


def _write_nir(net: SpikingNetwork, static: bool, folder: Path) -> None:
    graph = to_nir(net)
    import nir

    nir.write(folder / "network.nir", graph)


_WRITERS: dict[str, Callable[[SpikingNetwork, bool, Path], None]] = {
    "pt2": _write_pt2,
    "onnx": write_onnx,
    "onnx_int8": partial(write_onnx, on_integers=True),
    "nir": _write_nir,
}


def _folded_checkpoint(checkpoint: dict[str, Any], config: dict[str, Any], net: SpikingNetwork) -> dict[str, Any]:
    """Return a checkpoint of the folded `net` that `test` and `predict` accept like the original one."""
    kept = {key: value for key, value in checkpoint.items() if key not in _TRAINING_STATE}
    if type(net) is not SpikingNetwork:
        return kept  # its class builds it with BN
    others = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("network.")}
    kept["state_dict"] = others | {f"network.{name}": value for name, value in net.state_dict().items()}
    kept["hyper_parameters"] = {**checkpoint["hyper_parameters"], "folded": True}
    kept["network_parts"] = parts_of(net)
    if config:
        config = {**config, "model": {**config["model"], "folded": True}}
        kept["cli_config"] = yaml.safe_dump(config, sort_keys=False)
    return kept


def _takes_images(data: dict[str, Any], formats: Sequence[str], given: Input | None) -> bool:
    """True if inputs are static images [N, C, H, W], False for frames [T, N, C, H, W].

    Raises:
        UserError: a format needs to know, but the data module is unknown and `given` is None.
    """
    if given is not None:
        return given == "images"
    asking = [name for name in formats if name not in ("network", "nir")]
    if asking and not str(data.get("class_path")).startswith("plif_lightning."):
        unknown = f"{data['class_path']} is not part of plif_lightning" if "class_path" in data else "is unknown"
        raise UserError(
            f"{' and '.join(asking)} must know if the network takes images or frames, but its data module "
            f"{unknown}: pass --input=images or --input=frames."
        )
    return "slicing" not in data.get("init_args", {})


def export(
    checkpoint_path: str | Path, out: str | Path, formats: Sequence[str] = ("network",), takes: Input | None = None
) -> dict[str, int]:
    """Export a checkpoint's network, with BN folded, into a folder.

    Always writes `network.ckpt`, which `load_network(out)` and `test --ckpt_path` read, and the manifest `export.json`:
    the hash of each file, class names, initial potentials of a stream, and which simulators reproduce the NIR graph.
    Optional: `network.pt2` (torch.export; loads without this package), `network.onnx` and `step.onnx`, the same with
    8-bit weights (`network_int8.onnx`, `step_int8.onnx`), and `network.nir`.

    Args:
        checkpoint_path: a checkpoint that `fit` wrote.
        out: the folder; files of an earlier export in it are replaced or deleted.
        formats: some of FORMATS.
        takes: `images` [N, C, H, W] or `frames` [T, N, C, H, W]; needed if the data module is not part of this package.

    Returns:
        Size of each file by name [bytes].

    Raises:
        CheckpointError: the checkpoint cannot be read.
        UserError: a format is unknown or does not support the network; a package is missing; the kind of input is
            unknown.
        OSError: a file cannot be written; the error names it. The folder is unchanged.
    """
    out = Path(out)
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UserError(f"--format must be some of {', '.join(FORMATS)}, got {', '.join(unknown)}.")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: --out must name a folder.")
    others = [name for name in formats if name != "network"]
    checkpoint_path = checkpoint_file(Path(checkpoint_path))
    checkpoint = load_checkpoint(checkpoint_path)
    config = configuration_in(checkpoint, checkpoint_path)
    net = network_in(checkpoint, checkpoint_path)
    if isinstance(net, SpikingNetwork):
        net = fold(net)
    elif refused := [name for name in others if name not in ("pt2", "onnx")]:
        raise UserError(
            f"{' and '.join(refused)} needs a structure, and the network is a {type(net).__name__} of your own: export "
            "pt2 or onnx."
        )
    if isinstance(net, SpikingNetwork) and net.inputs.name != "direct" and others:
        raise UserError(
            f"input_encoder={net.inputs.name!r} cannot be exported to {' or '.join(others)}: export only network."
        )
    data = config.get("data", {})
    static = _takes_images(data, formats, takes)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with _folder_inside(out) as folder:
        with written_whole(folder / "network.ckpt", "wb") as opened:
            torch.save(_folded_checkpoint(checkpoint, config, net), opened)
        for name in dict.fromkeys(others):
            _WRITERS[name](net, static, folder)
        facts = {"made_from": checkpoint_path.name, **_facts(net, static, checkpoint, data, formats)}
        return _publish(folder, out, facts)


def _facts(
    net: SpikingNetwork, static: bool, checkpoint: dict[str, Any], data: dict[str, Any], formats: Sequence[str]
) -> dict[str, Any]:
    """Return what the manifest says of a network, its data set and its classes."""
    return {
        "data": str(data["class_path"]).rsplit(".", 1)[-1] if "class_path" in data else None,
        "class_names": class_names_in(checkpoint, net.num_classes),
        "input": ["N", *net.input_shape] if static else [net.time_steps, "N", *net.input_shape],
        "time_steps": net.time_steps,
        "structure": description(net),
        "potentials_before_the_first_step": {name: neuron.constants.v_reset for name, neuron in neurons_of(net)},
        "states_before_the_first_step": states_of(net),
        **({"nir_readers": readers(net)} if "nir" in formats else {}),
    }


@contextlib.contextmanager
def _folder_inside(out: Path) -> Iterator[Path]:
    """Create a temporary folder in `out` and delete it afterwards, and `out` too if it was created for nothing.

    Raises:
        OSError: a file in it could not be written; the error names the same file in `out`.
    """
    there = out.exists()
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(".export*"):  # left by a killed process, or in use by a concurrent export
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _STALE_AFTER:
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=".export", dir=out))
    try:
        yield folder
    except OSError as error:
        if error.filename is None or Path(error.filename).parent != folder:
            raise
        raise OSError(error.errno, error.strerror, str(out / Path(error.filename).name)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not there:
            with contextlib.suppress(OSError):
                out.rmdir()  # only if nothing was exported


def _publish(folder: Path, out: Path, facts: Mapping[str, Any]) -> dict[str, int]:
    """Write the manifest, move all files from `folder` to `out`, delete stale ones, and return the size of each."""
    files = sorted(folder.iterdir())
    manifest = {**facts, "sha256": {file.name: sha256_of(file) for file in files}}
    (folder / EXPORTED).write_text(json.dumps(manifest, indent=1))
    earlier = [out / name for name in _earlier_files(out) if not (folder / name).exists()]
    earlier = [path for path in earlier if path.name != CARD or (path.exists() and is_own_card(path))]
    for file in [*files, folder / EXPORTED]:
        file.replace(out / file.name)
    for file in earlier:  # stale: may hold another network
        file.unlink(missing_ok=True)
    return {file.name: (out / file.name).stat().st_size for file in files}


def add_to_manifest(out: Path, names: Iterable[str]) -> None:
    """Note files that were written into the folder of an export afterwards, so that the next one replaces them, too."""
    manifest = json.loads((out / EXPORTED).read_text("utf-8"))
    manifest["sha256"] |= {name: sha256_of(out / name) for name in names}
    with written_whole(out / EXPORTED) as file:
        json.dump(manifest, file, indent=1)


def _earlier_files(folder: Path) -> list[str]:
    """Return the names of an earlier export's files; all possible names if its manifest is damaged."""
    try:
        names = json.loads((folder / EXPORTED).read_text("utf-8"))["sha256"]
        return [name for name in names if Path(name).name == name]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        onnx = [f"{what}{ending}.onnx" for what in ("network", "step") for ending in ("", "_int8")]
        return ["network.ckpt", "network.pt2", "network.nir", *onnx]
