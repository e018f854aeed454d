"""What Lightning, PyTorch, jsonargparse or a loader ended with, in one sentence, where a user can do something."""

import errno
import re
import traceback
from pathlib import Path

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException

from plif_lightning.cli.messages import own_error


def explained(error: Exception) -> str | None:
    """The sentence; None where the error is one of this program."""
    own: str | Exception | None = error if isinstance(error, MisconfigurationException) else own_error(error)
    if own is None and isinstance(error, (ValueError, RuntimeError, TypeError)) and _raised_by_lightning(error):
        own = " ".join(str(error).split())
    own = (
        own
        or _lost_worker(error)
        or _too_many_files(error)
        or _no_memory(error)
        or _lost_company(error)
        or _other_weights(error)
        or _of_a_class(error)
    )
    if own is None:
        return None
    # PyTorch puts a loader worker's traceback into the message.
    return str(own).strip().split("\n")[-1].split("Error: ", 1)[-1] if "Original Traceback" in str(own) else str(own)


def _raised_by_lightning(error: Exception) -> bool:
    """Whether Lightning itself, and nothing that it called, refused something that a user asked for."""
    trace = traceback.extract_tb(error.__traceback__)
    return bool(trace) and Path(L.__file__).parent in Path(trace[-1].filename).parents


def _lost_company(error: Exception) -> str | None:
    """What it means where a library that lets processes meet gives up."""
    lost = re.search("closed by peer|reset by peer|timed out|Timed out|remote process|pair closure", str(error))
    by_whom = re.search("gloo|NCCL|TCPStore|c10d|pair closure", str(error))
    if not isinstance(error, RuntimeError) or not lost or not by_whom:
        return None
    first = " ".join(str(error).split())[:160]
    return (
        f"another process of this run has ended, or has not answered for too long, so this one ends too ({first}). "
        "Its checkpoints are whole: where it is a fit, resume it from last.ckpt."
    )


def _lost_worker(error: Exception) -> str | None:
    """A loader's process that ended, as the kernel ends one where memory runs out."""
    named = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
    # Ended while a batch is handed over, it is not PyTorch that notices.
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    handing_over = any(file.parent.name == "multiprocessing" and file.name == "reductions.py" for file in files)
    lost_in_between = isinstance(error, (ConnectionError, EOFError, FileNotFoundError)) and handing_over
    if not lost_in_between and not (named and isinstance(error, RuntimeError)):
        return None
    which = f" (pid {named[1]})" if named else ""
    return (
        f"a process that loads data{which} was ended from outside, as happens where memory runs out: pass a smaller "
        "data.num_workers or data.batch_size."
    )


def _too_many_files(error: Exception) -> str | None:
    seen: BaseException | None = error
    while seen is not None:
        # The last is what PyTorch's workers make of it.
        said = any(words in str(seen) for words in ("Too many open files", "received 0 items of ancdata"))
        if said or getattr(seen, "errno", None) == errno.EMFILE:
            return "this process may open no more files (ulimit -n): allow more, or pass --data.num_workers 0."
        seen = seen.__cause__ or seen.__context__
    return None


def _no_memory(error: Exception) -> str | None:
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
    if not isinstance(error, RuntimeError) or "loading state_dict" not in str(error):
        return None
    return f"the checkpoint's weights are not this network's: {' '.join(str(error).split())[:300]}"


def _of_a_class(error: Exception) -> str | None:
    """jsonargparse's report on classes that it could not make: the first reason in it."""
    if not isinstance(error, ValueError) or not str(error).startswith("Does not validate against any of the Union"):
        return None
    reasons = re.findall(
        r"^ +- (?!Does not validate|Expected a <class|a class path|a dict|Not a valid)(.+)$", str(error), re.M
    )
    made = re.findall(r"class_path='(?:\w+\.)*(\w+)'", str(error))
    name, reason = made[0] if made else "a class", reasons[0] if reasons else "see --help-all"
    return f"{name} cannot be made of what was given: {reason}."
