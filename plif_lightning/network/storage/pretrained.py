"""Trained networks in safetensors, with a model card: in a folder, or on the Hugging Face hub."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from plif_lightning.errors import CheckpointError, UserError
from plif_lightning.network.network import SpikingNetwork
from plif_lightning.network.stepping import unwrapped
from plif_lightning.network.storage.checkpoint import network_from
from plif_lightning.network.storage.fingerprint import fingerprint, require_same
from plif_lightning.network.user_networks import description, neurons_of
from plif_lightning.neurons import describe_neuron
from plif_lightning.runtime.files import atomic_write
from plif_lightning.runtime.program import needed_by
from plif_lightning.structure import NEURONS, parse
from plif_lightning.structure.layers import neurons_in
from plif_lightning.version import __version__

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_FACTS = ("data", "protocol", "accuracy", "epochs", "command", "license")


def _foreign(arguments: Mapping[str, Any]) -> str | None:
    """Name of neurons that are not this package's; None if all are."""
    neuron = arguments.get("neuron", "plif")
    paths = [neuron["class_path"] if isinstance(neuron, Mapping) else neuron]
    if text := arguments.get("structure"):
        paths += [neurons.name for neurons in neurons_in(parse(text).layers)]
    is_builtin = lambda path: path in NEURONS or "." not in path or path.startswith("plif_lightning.neurons.")  # noqa: E731
    return next((path for path in paths if not is_builtin(path)), None)


def save_pretrained(net: nn.Module, folder: str | Path, card: Mapping[str, str] | None = None) -> None:
    """Write a network and a model card into a folder: `model.safetensors`, `config.json` and `README.md`.

    Args:
        net: a `SpikingNetwork`, a `SpikingClassifier`, or a user-defined network, of which the weights are written and
            no code.
        folder: created if missing.
        card: card contents: data, protocol, accuracy, epochs, command, license (that of the weights).

    Raises:
        UserError: an unknown fact, or a package is missing.
    """
    with needed_by("saving a network as safetensors"):
        from safetensors.torch import save

    net, card = unwrapped(net), card or {}
    if unknown := sorted(card.keys() - set(_FACTS)):
        raise UserError(f"a card has no {', '.join(unknown)}; known are {', '.join(_FACTS)}.")
    about: dict[str, Any] = {"plif_lightning": __version__, "network": description(net)}
    about["fingerprint"] = fingerprint(net)
    if type(net) is SpikingNetwork:
        arguments = {**net.arguments, "neuron": describe_neuron(net.arguments.get("neuron", "plif"))}
        if not _foreign(arguments):
            about["arguments"] = arguments
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    with atomic_write(folder / WEIGHTS, "wb") as file:
        file.write(save(weights, {"format": "pt"}))
    with atomic_write(folder / CONFIG) as file:
        json.dump(about, file, indent=1)
    with atomic_write(folder / CARD) as file:
        file.write(_card(net, card, built="arguments" in about))


def _card(net: Any, entries: Mapping[str, str], built: bool) -> str:
    """A model card in the hub's form; `built`: `from_pretrained` makes the network without its class."""
    licence = entries.get("license", "")
    tau = {name: neuron.learned().get("tau") for name, neuron in neurons_of(net)}
    has_shape = all(hasattr(net, name) for name in ("input_shape", "time_steps", "num_classes"))
    rows = {
        "network": f"`{description(net)}`",
        "input": f"{' x '.join(map(str, net.input_shape))}, T = {net.time_steps}, {net.num_classes} classes"
        if has_shape
        else "",
        **{name: entries[name] for name in ("data", "protocol", "accuracy", "epochs") if name in entries},
        "command": f"`{entries['command']}`" if "command" in entries else "",
        "tau": ", ".join(f"{name} {float(value.mean()):.3f}" for name, value in tau.items() if value is not None),
        "license of the weights": licence or "not stated",
        "written by": f"plif_lightning {__version__}",
    }
    cells = {name: " ".join(value.split()).replace("|", "\\|") for name, value in rows.items() if value}
    table = "\n".join(f"| {name} | {value} |" for name, value in cells.items())
    arguments = "" if built else f", {type(net).__name__}(...)"
    head = f"license: {licence}\n" if licence else ""
    return (
        f"---\nlibrary_name: plif_lightning\n{head}tags: [spiking-neural-network, plif]\n---\n\n"
        f"# A spiking network of PLIF neurons\n\n| | |\n|---|---|\n{table}\n\n"
        "```python\nimport plif_lightning as pl\n\n"
        f'network = pl.from_pretrained("FOLDER OR NAME ON THE HUB"{arguments})\n```\n'
    )


def from_pretrained(
    source: str | Path, net: nn.Module | None = None, revision: str | None = None, token: str | None = None
) -> nn.Module:
    """A network that `save_pretrained` wrote, in evaluation mode, on the CPU. No code of the file's author runs.

    Args:
        source: folder, or OWNER/NAME on the hub.
        net: takes the weights; needed for a user-defined network, or user-defined neurons.
        revision: branch, tag or commit on the hub.
        token: of the hub, for private networks.

    Raises:
        CheckpointError: it is damaged, or of another network than `net`.
        UserError: a package is missing.
    """
    with needed_by("a network in safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    folder, source = Path(source), str(source)
    if folder.is_dir():
        config, weights = folder / CONFIG, folder / WEIGHTS
    else:
        with needed_by("a network on the hub"):
            from huggingface_hub import hf_hub_download
        config, weights = (
            Path(hf_hub_download(source, name, revision=revision, token=token)) for name in (CONFIG, WEIGHTS)
        )
    try:
        about, state = json.loads(config.read_text("utf-8")), load_file(weights)
        arguments = {**about.get("arguments", {})}
        stored = about["fingerprint"]
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source} is not what save_pretrained writes, or is damaged ({error}).") from error
    if net is None and (not arguments or _foreign(arguments)):
        raise CheckpointError(
            f"{source} holds {about.get('network')}, which is user-defined, and its code is not imported: make such a "
            f"network and pass it, from_pretrained({source!r}, net)."
        )
    if net is None:
        net = network_from(arguments)
    require_same(net, stored, source)
    net.load_state_dict(state)
    return net.eval()


def push_to_hub(
    net: nn.Module,
    repo_id: str,
    card: Mapping[str, str] | None = None,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Put a network and its card on the Hugging Face hub, and return its URL; see `save_pretrained`.

    Args:
        net: see `save_pretrained`.
        repo_id: OWNER/NAME; created if missing.
        card: for the card.
        private: visible to its owner only.
        token: of the hub; None for the token of `hf auth login`.
    """
    with needed_by("a network on the hub"):
        from huggingface_hub import HfApi
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(net, folder, card)
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Add a network of plif_lightning"
        )
    return str(commit.repo_url)
