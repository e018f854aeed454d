"""The command that starts this program, and the packages that only a part of it needs, with the extra of each."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

from plif_lightning.errors import UserError

_ROOT = Path(__file__).resolve().parents[2]
_MAIN = _ROOT / "main.py"
_IS_CHECKOUT = _MAIN.is_file() and (_ROOT / "configs" / "base.yaml").is_file()
# Package as it is imported -> extra of pyproject.toml.
EXTRAS = {
    **dict.fromkeys(("tonic", "h5py", "lz4", "zstandard", "hdf5plugin"), "events"),
    **dict.fromkeys(("matplotlib", "pandas", "tabulate", "jinja2"), "report"),
    **dict.fromkeys(("nir", "onnx", "onnxscript", "onnxruntime"), "export"),
    **dict.fromkeys(("safetensors", "huggingface_hub"), "hub"),
    "sklearn": "digits",
    "wandb": "wandb",
    "optuna": "search",
    "neurobench": "neurobench",
}


def program_name() -> str:
    """Return the command as a user types it."""
    is_installed = not _IS_CHECKOUT or Path(sys.argv[0]).stem == "plif-lightning"
    return "plif-lightning" if is_installed else "python main.py"


def installing(extra: str) -> str:
    """Return the command that installs an extra of this package, as a user types it.

    Outside of a checkout it names the packages themselves: no index has a release of it.
    """
    if _IS_CHECKOUT:
        return f"pip install '.[{extra}]'"
    lines = (line.replace('"', "'").partition(";") for line in requires("plif_lightning") or ())
    packages = [f"'{package.strip()}'" for package, _, condition in lines if f"extra == '{extra}'" in condition]
    return f"pip install {' '.join(packages)}"


def require_package(package: str, purpose: str) -> None:
    """Refuse a purpose that needs a package that is not installed, without importing it.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        is_installed = find_spec(package) is not None
    except ImportError:
        is_installed = False
    if not is_installed:
        raise _lacking(package, purpose)


def command() -> list[str]:
    """Return the arguments that start the program in another process."""
    return [sys.executable, str(_MAIN)] if _IS_CHECKOUT else [sys.executable, "-m", "plif_lightning"]


class MissingExtraError(UserError):
    """A package that an extra brings is not installed."""


def missing(error: BaseException, purpose: str = "this") -> MissingExtraError | None:
    """The sentence for a failed import of such a package; None for another error."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    return _lacking(package, purpose) if package in EXTRAS else None


def _lacking(package: str, purpose: str) -> MissingExtraError:
    return MissingExtraError(f"{purpose} needs {package}, which is not installed: {installing(EXTRAS[package])}.")


@contextmanager
def needed_by(purpose: str) -> Iterator[None]:
    """Turn a failed import of an optional package within the block into a sentence with the command that brings it.

    Args:
        purpose: the purpose, as the beginning of the sentence.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        yield
    except ImportError as error:
        if (sentence := missing(error, purpose)) is not None:
            raise sentence from error
        raise
