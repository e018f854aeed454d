"""Trained networks in safetensors, with a model card: in a folder, or on the Hugging Face hub."""

import json
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from plif_lightning.errors import CheckpointError, UserError
from plif_lightning.network.fingerprint import fingerprint, require_same
from plif_lightning.runtime.files import written_whole
from plif_lightning.runtime.program import needed_by
from plif_lightning.structure import parse
from plif_lightning.structure.layers import neurons_in
from plif_lightning.structure.notation import NEURONS
from plif_lightning.version import __version__

_N = TypeVar("_N", bound=nn.Module)
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_FACTS = ("data", "protocol", "accuracy", "epochs", "command", "license")


def _foreign(arguments: Mapping[str, Any]) -> str | None:
    """Name of neurons that are not this package's; None if all are."""
    neuron = arguments.get("neuron", "plif")
    paths = [neuron["class_path"] if isinstance(neuron, Mapping) else neuron]
    if text := arguments.get("structure"):
        paths += [one.name for one in neurons_in(parse(text).layers)]
    ours = lambda path: path in NEURONS or "." not in path or path.startswith("plif_lightning.neurons.")  # noqa: E731
    return next((path for path in paths if not ours(path)), None)


def write(net: Any, folder: Path, facts: Mapping[str, str]) -> None:
    """Write weights, arguments and model card; see `SpikingNetwork.save_pretrained`."""
    with needed_by("saving a network as safetensors"):
        from safetensors.torch import save
    from plif_lightning.neurons import as_plain

    arguments = {**net.arguments, "neuron": as_plain(net.arguments.get("neuron", "plif"))}
    own_class = not type(net).__module__.startswith("plif_lightning.")
    if foreign := _foreign(arguments) or (own_class and type(net).__name__):
        raise UserError(
            f"the network cannot be saved: {foreign} is user-defined, and from_pretrained imports no code but this "
            "package's. Pass on the checkpoint, and the file of the class, instead."
        )
    if unknown := sorted(facts.keys() - set(_FACTS)):
        raise UserError(f"a card has no {', '.join(unknown)}; known are {', '.join(_FACTS)}.")
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    about = {"plif_lightning": __version__, "fingerprint": fingerprint(net), "arguments": arguments}
    with written_whole(folder / WEIGHTS, "wb") as file:
        file.write(save(weights, {"format": "pt"}))
    with written_whole(folder / CONFIG) as file:
        json.dump(about, file, indent=1)
    with written_whole(folder / CARD) as file:
        file.write(_card(net, facts))


def _card(net: Any, facts: Mapping[str, str]) -> str:
    """A model card in the hub's form."""
    licence = facts.get("license", "")
    tau = {name: neuron.learned().get("tau") for name, neuron in net.neurons()}
    rows = {
        "network": f"`{net.structure}`",
        "input": f"{' x '.join(map(str, net.input_shape))}, T = {net.time_steps}, {net.num_classes} classes",
        **{name: facts[name] for name in ("data", "protocol", "accuracy", "epochs") if name in facts},
        "command": f"`{facts['command']}`" if "command" in facts else "",
        "tau": ", ".join(f"{name} {float(value.mean()):.3f}" for name, value in tau.items() if value is not None),
        "license of the weights": licence or "not stated",
        "written by": f"plif_lightning {__version__}",
    }
    cells = {name: " ".join(value.split()).replace("|", "\\|") for name, value in rows.items() if value}
    table = "\n".join(f"| {name} | {value} |" for name, value in cells.items())
    head = f"license: {licence}\n" if licence else ""
    return (
        f"---\nlibrary_name: plif_lightning\n{head}tags: [spiking-neural-network, plif]\n---\n\n"
        f"# A spiking network of PLIF neurons\n\n| | |\n|---|---|\n{table}\n\n"
        "```python\nimport plif_lightning as pl\n\n"
        'network = pl.SpikingNetwork.from_pretrained("FOLDER OR NAME ON THE HUB")\n```\n'
    )


def read(kind: type[_N], known: Collection[str], place: str, revision: str | None, token: str | None) -> _N:
    """The network, of a class with these arguments, in a folder or on the hub; see `from_pretrained`."""
    with needed_by("a network in safetensors"):
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    folder = Path(place)
    if folder.is_dir():
        config, weights = folder / CONFIG, folder / WEIGHTS
    else:
        with needed_by("a network on the hub"):
            from huggingface_hub import hf_hub_download
        config, weights = (
            Path(hf_hub_download(place, name, revision=revision, token=token)) for name in (CONFIG, WEIGHTS)
        )
    try:
        about, state = json.loads(config.read_text("utf-8")), load_file(weights)
        arguments = {name: value for name, value in about["arguments"].items() if name in known}
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{place} is not what save_pretrained writes, or is damaged ({error}).") from error
    if foreign := _foreign(arguments):
        raise CheckpointError(
            f"{place} has neurons of its author's own, {foreign}, whose code would be imported: load a checkpoint of "
            "it with load_network, if you trust it."
        )
    net = kind(**{**arguments, "backend": "auto", "sparse": "auto"})
    require_same(net, about.get("fingerprint"), place)
    net.load_state_dict(state)
    return net.eval()


def push(net: Any, repo_id: str, facts: Mapping[str, str], private: bool, token: str | None) -> str:
    """Upload a network to a repository on the hub, which is made if it is not there; returns its URL."""
    with needed_by("a network on the hub"):
        from huggingface_hub import HfApi
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        write(net, Path(folder), facts)
        api.create_repo(repo_id, private=private, exist_ok=True)
        made = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Add a network of plif_lightning")
    return str(made.repo_url)
