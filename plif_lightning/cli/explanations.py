"""Explain errors of Lightning, PyTorch, jsonargparse or a data loader that a user can fix, in one sentence each."""

import errno
import re
import traceback
from collections.abc import Callable
from pathlib import Path

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException

from plif_lightning.cli.messages import own_error


def explained(error: Exception) -> str | None:
    """Return the explanation of an error; None for an error of this program."""
    text = _first(error, _own, _of_lightning, *_CAUSES)
    if text is None or "Original Traceback" not in text:
        return text
    # PyTorch puts a loader worker's traceback into the message.
    return text.strip().split("\n")[-1].split("Error: ", 1)[-1]


def _first(error: Exception, *causes: Callable[[Exception], str | None]) -> str | None:
    """Return the first explanation that fits."""
    return next(filter(None, (cause(error) for cause in causes)), None)


def _own(error: Exception) -> str | None:
    own = error if isinstance(error, MisconfigurationException) else own_error(error)
    return None if own is None else str(own)


def _of_lightning(error: Exception) -> str | None:
    """Return the message of Lightning itself, not of a function that it called, refusing a setting."""
    trace = traceback.extract_tb(error.__traceback__)
    raised = bool(trace) and Path(L.__file__).parent in Path(trace[-1].filename).parents
    if not raised or not isinstance(error, (ValueError, RuntimeError, TypeError)):
        return None
    return " ".join(str(error).split())


def _lost_peer(error: Exception) -> str | None:
    """Explain a lost peer or a timeout between processes."""
    lost = re.search("closed by peer|reset by peer|timed out|Timed out|remote process|pair closure", str(error))
    # PyTorch's store names no library: "The client socket has timed out after 15000ms while trying to connect to".
    library = re.search("gloo|NCCL|TCPStore|c10d|pair closure|client socket", str(error))
    if not isinstance(error, RuntimeError) or not lost or not library:
        return None
    first = " ".join(str(error).split())[:160]
    return (
        f"another process of this run has ended or did not answer in time, so this one ends too ({first}). "
        "Its checkpoints are complete: resume a fit from last.ckpt."
    )


def _lost_worker(error: Exception) -> str | None:
    """Explain a data loader's process that was killed, as the kernel does when memory runs out."""
    named = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
    # If it was killed while handing over a batch, the error is not PyTorch's.
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    handing_over = any(file.parent.name == "multiprocessing" and file.name == "reductions.py" for file in files)
    lost_in_between = isinstance(error, (ConnectionError, EOFError, FileNotFoundError)) and handing_over
    if not lost_in_between and not (named and isinstance(error, RuntimeError)):
        return None
    which = f" (pid {named[1]})" if named else ""
    return (
        f"a process that loads data{which} was killed from outside, for example because memory ran out: pass a "
        "smaller data.num_workers or data.batch_size."
    )


def _too_many_files(error: Exception) -> str | None:
    """Explain the limit on open files."""
    seen: BaseException | None = error
    while seen is not None:
        # The second text is how PyTorch's workers report it.
        said = any(words in str(seen) for words in ("Too many open files", "received 0 items of ancdata"))
        if said or getattr(seen, "errno", None) == errno.EMFILE:
            return "this process may open no more files (ulimit -n): allow more, or pass --data.num_workers 0."
        seen = seen.__cause__ or seen.__context__
    return None


def _no_memory(error: Exception) -> str | None:
    """Explain a failed allocation on a CPU or a GPU."""
    asked = re.search(r"tried to allocate ([\d.]+) ?(bytes|[KMGT]iB)", str(error), re.IGNORECASE)
    if not isinstance(error, (RuntimeError, MemoryError)) or not (asked or isinstance(error, MemoryError)):
        return None
    more = ""
    if asked:
        more = f" when {asked[1]} {asked[2]} more were needed"
        if asked[2] == "bytes":
            more = f" when {int(asked[1]) / 2**30:,.1f} GiB more were needed"
    return f"the memory was used up{more}: lower data.batch_size, data.time_steps, model.channels or model.fc_features."


def _other_weights(error: Exception) -> str | None:
    """Explain weights that do not fit the network."""
    if not isinstance(error, RuntimeError) or "loading state_dict" not in str(error):
        return None
    return f"the checkpoint's weights are not this network's: {' '.join(str(error).split())[:300]}"


def _of_a_class(error: Exception) -> str | None:
    """Return the first reason in jsonargparse's report on a class that it could not build."""
    if not isinstance(error, ValueError) or not str(error).startswith("Does not validate against any of the Union"):
        return None
    reasons = re.findall(
        r"^ +- (?!Does not validate|Expected a (?:<class|typing)|a class path|a dict|Not a valid)(.+)$",
        str(error),
        re.M,
    )
    made = re.findall(r"class_path='(?:\w+\.)*(\w+)'", str(error))
    name, reason = made[0] if made else "a class", reasons[0] if reasons else "see --help-all"
    # A whole sentence is one of ours.
    return reason if reason.endswith(".") else f"{name} cannot be built with these arguments: {reason}."


_CAUSES = (_lost_worker, _too_many_files, _no_memory, _lost_peer, _other_weights, _of_a_class)
