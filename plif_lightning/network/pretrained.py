"""Trained networks as one safetensors file, with a card: in a folder, at a URL, on the Hugging Face hub."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from plif_lightning.errors import CheckpointError, UserError
from plif_lightning.network.parts import parts_of, require_finite
from plif_lightning.runtime.extras import needed_by
from plif_lightning.runtime.files import sha256_of, written_whole
from plif_lightning.runtime.version import __version__
from plif_lightning.structure import parse
from plif_lightning.structure.layers import neurons_in
from plif_lightning.structure.notation import NEURONS

WEIGHTS, CARD = "model.safetensors", "README.md"
_OF_NEURONS = ("plif_lightning", *(f"plif_lightning.neurons{inside}" for inside in ("", ".modules", ".published")))
# Full names of this package's neurons.
_KNOWN = {f"{module}.{kind}" for kind in NEURONS for module in _OF_NEURONS}
_KEY = "plif_lightning"  # of the file's metadata
_LONGEST = 2**22  # characters of a description
_FACTS = ("data", "protocol", "accuracy", "epochs", "command", "license")


class Pretrained(NamedTuple):
    """Content of a file, not yet a network.

    Attributes:
        arguments: of `SpikingNetwork`.
        parts: of the network that was saved, see `parts_of`.
        weights: its state.
        facts: what its card says of it.
    """

    arguments: dict[str, Any]
    parts: Any
    weights: dict[str, Tensor]
    facts: dict[str, str]


def write_pretrained(net: nn.Module, arguments: Mapping[str, Any], folder: Path, facts: Mapping[str, str]) -> None:
    """Write `model.safetensors`, which holds all that is needed, and `README.md`, its model card.

    Raises:
        UserError: an argument is no plain value, as of neurons that were built in Python; the neurons are not this
            package's; a fact is unknown; the folder has a README.md of somebody's own; the package safetensors is
            missing.
    """
    with needed_by("saving a network as safetensors"):
        from safetensors.torch import save
    if type(net).__module__.partition(".")[0] != __name__.partition(".")[0]:
        raise UserError(
            f"the network cannot be saved: its class {type(net).__name__} is one's own, and from_pretrained imports no "
            "code but this package's. Pass on the checkpoint, and the file of the network, instead."
        )
    if unknown := sorted(facts.keys() - set(_FACTS)):
        raise UserError(f"a card has no {', '.join(unknown)}; known are {', '.join(_FACTS)}.")
    try:
        about = {"version": __version__, "arguments": arguments, "parts": parts_of(net), "facts": dict(facts)}
        text = json.dumps(about)
    except TypeError as error:
        raise UserError(
            f"the network cannot be saved: one of its arguments is no plain value ({error}). Give neurons by "
            "their name."
        ) from error
    if foreign := _foreign_neurons(arguments):
        raise UserError(
            f"the network cannot be saved: {foreign} are neurons of one's own, and from_pretrained imports no code but "
            "this package's. Pass on the checkpoint, and the file of the neurons, instead."
        )
    require_own_card(folder)
    weights = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    content = save(weights, {_KEY: text, "format": "pt"})
    with written_whole(folder / WEIGHTS, "wb") as file:
        file.write(content)
    with written_whole(folder / CARD) as file:
        card = _card(net, facts, hashlib.sha256(content).hexdigest())
        file.write(card + _mark(card))


def _mark(card: str) -> str:
    """Last line of a card, by which it is known that nobody has changed it."""
    return f"<!-- plif_lightning {hashlib.sha256(card.encode()).hexdigest()[:16]} -->\n"


def is_own_card(path: Path) -> bool:
    """True if a file is a card as it was written, or of a version that did not mark them."""
    text = path.read_bytes().decode("utf-8", "replace")
    lines = text.splitlines(keepends=True)
    unmarked = text.startswith("---\nlibrary_name: plif_lightning\n") and "<!-- plif_lightning" not in text
    return unmarked or (bool(lines) and lines[-1] == _mark("".join(lines[:-1])))


def require_own_card(folder: Path) -> None:
    """Refuse to write a card over a README.md of somebody's own."""
    if (folder / CARD).exists() and not is_own_card(folder / CARD):
        raise UserError(
            f"{folder / CARD} is no card that was written here, or was changed since: move it, or take another folder."
        )


def _card(net: Any, facts: Mapping[str, str], digest: str) -> str:
    """A model card in the hub's form."""
    licence = facts.get("license", "")
    head = ["---", "library_name: plif_lightning", *([f"license: {licence}"] if licence else [])]
    head += ["tags: [spiking-neural-network, plif]", "---", ""]
    tau = ", ".join(f"{name} {_tau(neuron):.3f}" for name, neuron in net.neurons() if "tau" in neuron.learned())
    rows = {
        "network": f"`{net.structure}`",
        "input": f"{' x '.join(map(str, net.input_shape))}, T = {net.time_steps}, {net.num_classes} classes",
        **{name: facts[name] for name in ("data", "protocol", "accuracy", "epochs") if name in facts},
        "command": f"`{facts['command']}`" if "command" in facts else "",
        "tau": tau,
        "license of the weights": licence or "not stated",
        "SHA-256": f"`{digest}`",
        "written by": f"plif_lightning {__version__}",
    }
    cells = {name: " ".join(value.split()).replace("|", "\\|") for name, value in rows.items() if value}
    table = [f"| {name} | {value} |" for name, value in cells.items()]
    return "\n".join([
        *head,
        "# A spiking network of PLIF neurons",
        "",
        "| | |",
        "|---|---|",
        *table,
        "",
        "```python",
        "import plif_lightning as pl",
        "",
        'network = pl.SpikingNetwork.from_pretrained("FOLDER, URL OR NAME ON THE HUB")',
        "```",
        "",
    ])  # fmt: skip


def _tau(neuron: Any) -> float:
    return float(neuron.learned()["tau"].mean())


def read_pretrained(place: str | Path, sha256: str | None, revision: str | None, token: str | None) -> Pretrained:
    """Read a network's file; arguments and errors as `SpikingNetwork.from_pretrained`."""
    path = _fetched(str(place), sha256, revision, token)
    with needed_by("a network in safetensors"):
        from safetensors import SafetensorError, safe_open
    if sha256 is not None and (digest := sha256_of(path)) != sha256.lower():
        raise CheckpointError(f"{path} has the SHA-256 {digest}, and not {sha256}: it is another file, or damaged.")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})[_KEY][:_LONGEST])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        found = Pretrained(dict(about["arguments"]), about["parts"], weights, dict(about["facts"]))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is not what save_pretrained writes, or is damaged ({reason}).") from error
    require_finite(weights, path)
    return found


def require_known_neurons(arguments: Mapping[str, Any], place: object) -> None:
    """Refuse neurons that are not this package's: importing them would run code that a stranger's file names."""
    if foreign := _foreign_neurons(arguments):
        raise CheckpointError(
            f"{place} has neurons of its author's own, {foreign}, whose code would be imported: load a checkpoint of "
            "it with load_network, if you trust it."
        )


def _foreign_neurons(arguments: Mapping[str, Any]) -> str | None:
    """Name of neurons that are not this package's; None if all are."""
    text, neuron = arguments.get("structure"), arguments.get("neuron", "plif")
    path = neuron.get("class_path", neuron) if isinstance(neuron, Mapping) else neuron
    names = [path if isinstance(path, str) else repr(path)]
    names += [one.name for one in neurons_in(parse(text).layers)] if isinstance(text, str) else []
    return next((name for name in names if not re.fullmatch(r"\w+", name) and name not in _KNOWN), None)


def _fetched(place: str, sha256: str | None, revision: str | None, token: str | None) -> Path:
    """The file at a place, fetched if it is not on this machine."""
    if re.match(r"https?://", place):
        return _from_url(place, sha256)
    path = Path(place)
    if path.is_dir():
        path = path / WEIGHTS
    if path.is_file():
        return path
    if path.is_absolute() or path.suffix == ".safetensors" or not re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        raise CheckpointError(f"{path} does not exist: pass a folder, a URL with its sha256, or OWNER/NAME on the hub.")
    with needed_by("a network on the hub"):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError
    try:
        return Path(hf_hub_download(place, WEIGHTS, revision=revision, token=token))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise CheckpointError(f"{place} is no folder, and cannot be had from the hub: {reason}") from error


def _from_url(url: str, sha256: str | None) -> Path:
    """The file of a URL, in PyTorch's cache of models, by its hash."""
    if sha256 is None or not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise UserError(f"{url} must be given with its sha256 (64 hexadecimal digits), which its card names.")
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{sha256.lower()}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256.lower(), progress=False)
        except RuntimeError as error:  # another hash
            raise CheckpointError(f"{url}: {' '.join(str(error).split())}") from error
        except OSError as error:
            raise CheckpointError(f"{url} cannot be fetched: {error}.") from error
    return path


def push(folder: Path, repo_id: str, private: bool, token: str | None, message: str) -> str:
    """Upload the files of a folder to a repository on the hub, which is made if it is not there; returns its URL."""
    with needed_by("a network on the hub"):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        made = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"{repo_id} cannot be written on the hub: {reason} Log in with `hf auth login`.") from error
    return str(made.repo_url)
