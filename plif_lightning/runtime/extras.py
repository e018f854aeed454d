"""Packages that only a part of the program needs, and the extra that brings each."""

from collections.abc import Iterator
from contextlib import contextmanager

from plif_lightning.errors import UserError
from plif_lightning.runtime import program

# Package as it is imported -> extra of pyproject.toml.
EXTRAS = {
    **dict.fromkeys(("tonic", "h5py", "lz4", "zstandard", "rosbags", "hdf5plugin"), "events"),
    **dict.fromkeys(("matplotlib", "scipy"), "report"),
    **dict.fromkeys(("nir", "onnx", "onnxscript", "onnxruntime"), "export"),
    **dict.fromkeys(("safetensors", "huggingface_hub"), "hub"),
    "sklearn": "digits",
    "wandb": "wandb",
    "optuna": "search",
    "neurobench": "neurobench",
}


class MissingExtraError(UserError):
    """A package that an extra brings is not installed."""


def missing(error: BaseException, what: str = "this") -> MissingExtraError | None:
    """The sentence for a failed import of such a package; None for another error."""
    package = (error.name or "").partition(".")[0] if isinstance(error, ImportError) else ""
    extra = EXTRAS.get(package)
    if extra is None:
        return None
    return MissingExtraError(f"{what} needs {package}, which is not installed: {program.installing(extra)}.")


@contextmanager
def needed_by(what: str) -> Iterator[None]:
    """Turn a failed import of an optional package within the block into a sentence with the command that brings it.

    Args:
        what: what needs it, as the beginning of the sentence.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        yield
    except ImportError as error:
        if (sentence := missing(error, what)) is not None:
            raise sentence from error
        raise
