"""The commands that repeat a run: its arguments, and those that resumed it with changes."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from plif_lightning import configs
from plif_lightning.runs.run import Run
from plif_lightning.runs.settings import Role, role

Argument = tuple[str, str]  # name, without the dashes, and value


def split_options(arguments: Iterable[str]) -> Iterator[Argument]:
    """Yield names and values of options, `--key value` or `--key=value`; `-c` is `config`."""
    parts = list(arguments)
    while parts:
        name, equals, value = parts.pop(0).removeprefix("--").partition("=")
        if not equals:
            value = parts.pop(0) if parts and not parts[0].startswith("--") else ""
        yield ("config" if name == "-c" else name), value


def recorded_arguments(run: Run, arguments: Sequence[str]) -> list[Argument]:
    """Arguments without paths; shipped configurations by their bare names.

    The folder of a user's data identifies the data set; it is kept, as a folder in `data`.
    """
    has_user_data = run.data_set in ("ImageFolder", "EventFolder", "SequenceFolder")
    recorded = []
    for name, value in split_options(arguments):
        if name == "config":
            recorded.append((name, _bare_name(value)))
        elif name == "data.root" and has_user_data:
            recorded.append((name, f"data/{Path(value).name}"))
        elif not role(name) & Role.PLACE:
            recorded.append((name, value))
    return recorded


def commands(run: Run) -> list[list[str]]:
    """Arguments of main.py, a list a call, which in sequence repeat a run to the same weights.

    After a change of the batch size, or of a length that the schedule depends on, there is one per resumption too: each
    but the last stops where the next one resumes. With edited code it cannot be repeated; the run's changes name
    the modules.
    """
    if not run.arguments:
        return []
    calls = [(0, run.arguments[1:]), *run.resumptions]
    if len(calls) == 1:
        return [["fit", *_as_words(recorded_arguments(run, calls[0][1]))]]
    folder = f"--run_folder=runs/{run.folder.path.name}_again"
    stops = [[f"--stop_after_step={step}"] for step, _ in calls[1:]]
    return [
        ["fit", *_as_words(recorded_arguments(run, arguments)), folder, *stop]
        for (_, arguments), stop in zip(calls, [*stops, []], strict=True)
    ]


def _as_words(arguments: Iterable[Argument]) -> list[str]:
    words: list[str] = []
    for name, value in arguments:
        # After a space, a value with a leading dash would be parsed as an option.
        words += [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", *([value] if value else [])]
    return words


def _bare_name(value: str) -> str:
    """The bare name of a shipped configuration, given by name or path; any other value unchanged."""
    path = Path(value)
    shipped = configs.names().get(path.stem)
    if shipped is None:
        return value
    path_in_checkout = Path("configs", shipped.relative_to(configs.folder()))
    is_shipped = path.read_bytes() == shipped.read_bytes() if path.is_file() else path == path_in_checkout
    return path.stem if value == path.stem or is_shipped else value
