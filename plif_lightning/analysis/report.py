"""One self-contained HTML page with all runs, tables and figures; it loads nothing from a server."""

import base64
import html
import io
import json
import math
import re
import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure

from plif_lightning.analysis.figures import FIGURES, NothingToShowError, drawn, typical_channels
from plif_lightning.analysis.searches import search_figure, search_table
from plif_lightning.analysis.settings import data_title, labels
from plif_lightning.analysis.tables import Table, heading, problems_of
from plif_lightning.errors import UserError
from plif_lightning.plot.tensors import pictures
from plif_lightning.runs.metrics import layer_values, neuron_kinds
from plif_lightning.runs.run import Run
from plif_lightning.runs.samples import Events, Samples, read_samples
from plif_lightning.runs.searches import SearchRecord
from plif_lightning.runtime.files import written_whole

# Limits of the page: points of a curve, channels, data sets and events of a sample in the player.
_POINTS = 200
_CHANNELS = 11
_PLAYERS = 4
_EVENTS = 20_000
_TALLEST = 96  # largest side of a map [pixel]
# Style of the figures in dark mode.
_DARK: Any = {
    **{f"{part}.facecolor": "#1b1f24" for part in ("figure", "axes", "savefig")},
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), "#e7e9ec"),
    "grid.color": "#5b636d",
}


def _number(value: Any, digits: int = 5) -> float | None:
    """Round to significant digits; None for anything but a finite number."""
    try:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            return None
    except OverflowError:  # an integer too large for a float
        return None
    return float(f"{value:.{digits}g}")


def _percent(share: Any) -> float | None:
    """Convert to percent with two decimals, as on the console: rounded once."""
    value = _number(share, 15)
    return None if value is None else float(f"{100 * value:.2f}")


def _thinned(run: Run) -> list[dict[str, float]]:
    """Return a run's metrics at _POINTS epochs at most, plus the best one."""
    rows = run.metrics
    if len(rows) <= _POINTS:
        return rows
    # Prefer epochs with a validation, which not every epoch need have.
    measured = [row for row in rows if run.val_key in row]
    rows = measured if len(measured) >= _POINTS // 2 else rows
    chosen = {round(i * (len(rows) - 1) / (_POINTS - 1)) for i in range(_POINTS)}
    best = run.best_metrics
    return [row for i, row in enumerate(rows) if i in chosen or row is best]


def _curves(run: Run) -> dict[str, list[float | None]]:
    """Return metrics by name, thinned as in `_thinned`."""
    rows = _thinned(run)
    converters: dict[str, Callable[[Any], float | None]] = {
        **dict.fromkeys(("train/loss", "lr", "train/samples_per_second"), _number),
        **dict.fromkeys((run.val_key, "train/acc"), _percent),
    }
    found: dict[str, list[float | None]] = {"epoch": [_number(row["epoch"] + 1) for row in rows]}
    of_layers = tuple(f"{kind}/" for kind in (*neuron_kinds(rows), "rate"))
    for key in dict.fromkeys(key for row in rows for key in row):
        if key in converters or key.startswith(of_layers):
            name = "accuracy" if key == run.val_key else key
            found[name] = [converters.get(key, _number)(row.get(key)) for row in rows]
    return found


def _row(i: int, run: Run, label: str) -> dict[str, Any]:
    best = run.best
    command = shlex.join(["python", "main.py", *run.command])
    rates = next(filter(None, (layer_values(row, "rate") for row in reversed(run.metrics))), {})
    return {
        "id": i,
        "name": run.name,
        "label": label,
        "data": data_title(run) + (f" ({run.facts['origin']})" if run.facts.get("origin") else ""),
        "T": _number(run.setting("data.time_steps")),
        "seed": _number(run.setting("seed_everything"), 15),
        "protocol": run.protocol if run.config else None,
        "accuracy": _percent(run.accuracy),
        "best_epoch": None if best is None else best[0],
        "epochs": run.epochs,
        "speed": _number(run.metrics[-1].get("train/samples_per_second"), 3) if run.metrics else None,
        "status": run.status,
        "curves": _curves(run),
        "rates": {layer: _number(rate) or 0.0 for layer, rate in rates.items()},
        "command": "; ".join([command, *run.changes]) if run.command else "The command was not recorded.",
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
    }


def _rows(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the page's data of each run, and the settings shared by all runs of each data set."""
    by_data: dict[str, list[int]] = defaultdict(list)
    for i, run in enumerate(runs):
        by_data[data_title(run)].append(i)
    rows, shared = [], {}
    for title, places in by_data.items():
        named = labels([runs[i] for i in places])
        rows += [_row(i, runs[i], label) for i, label in zip(places, named.each, strict=True)]
        if named.shared:
            shared[title] = named.shared
    return sorted(rows, key=lambda row: row["id"]), shared


def _shrunk(maps: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Subsample maps [..., H, W] with a side over _TALLEST."""
    step = -(-max(maps.shape[-2:]) // _TALLEST)
    return maps[..., ::step, ::step]


def _base64(values: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _player(run: Run, samples: Samples, i: int) -> dict[str, Any]:
    channels = typical_channels(samples, _CHANNELS)
    spikes = _shrunk(samples.spikes[:, i, channels])
    frames = pictures(_shrunk(samples.frames[:, i]))  # [T or 1, H, W, 3]
    votes = np.cumsum(samples.votes[:, i], 0) / np.arange(1, len(samples.votes) + 1)[:, None]
    return {
        "run": run.name,
        "data": data_title(run),
        "label": samples.classes[int(samples.label[i])],
        "classes": samples.classes,
        "channels": channels,
        "steps": len(spikes),
        "height": spikes.shape[2],
        "width": spikes.shape[3],
        "in_height": frames.shape[1],
        "in_width": frames.shape[2],
        "held": len(frames) == 1,
        "spikes": _base64(np.packbits(spikes)),
        "frames": _base64((255 * frames).round().astype(np.uint8)),
        "votes": [[round(float(v), 3) for v in step] for step in votes],
        "events": None if samples.events is None else _events(run, samples.events, i, len(spikes)),
    }


def _events(run: Run, events: Events, i: int, steps: int) -> dict[str, Any]:
    """Return a recording for the player, subsampled to _EVENTS events, and the bounds of its time-steps."""
    one = slice(events.offset[i], events.offset[i + 1])
    every = max(1, -(-(one.stop - one.start) // _EVENTS))
    address, time = events.address[one][::every].astype("<u4"), events.time[one][::every].astype(np.float64)
    if events.bounds is not None:
        bounds = -(-events.bounds[i] // every)
    elif run.setting("data.slicing") == "by_time" and len(time):
        bounds = np.searchsorted(time, time[0] + (time[-1] - time[0]) * np.arange(steps + 1) / steps)
        bounds[-1] = len(time)
    else:
        bounds = len(address) // steps * np.arange(steps + 1)
        bounds[-1] = len(address)
    height, width = events.sensor
    return {"height": height, "width": width, "every": every, "bounds": bounds.tolist(), "address": _base64(address)}


def _players(runs: Sequence[Run], problems: list[str]) -> list[dict[str, Any]]:
    """Return the recorded samples of the best run of each data set."""
    found: list[dict[str, Any]] = []
    seen: set[str] = set()
    for run in sorted(runs, key=lambda run: -(run.accuracy or 0.0)):
        if run.status == "unreadable" or data_title(run) in seen or len(seen) == _PLAYERS:
            continue
        try:
            players = _players_of(run)
        except (UserError, ValueError, IndexError) as error:
            problems.append(f"{run.name}: {error}")
            continue
        if players:
            seen.add(data_title(run))
            found += players
    return found


def _players_of(run: Run) -> list[dict[str, Any]]:
    """Return the recorded samples of a run; empty if it has none."""
    samples = read_samples(run.folder)
    return [] if samples is None else [_player(run, samples, i) for i in range(samples.spikes.shape[1])]


def _table(table: Table) -> str:
    table = table.trimmed
    ours = table.columns.index("ours") if "ours" in table.columns else None

    def cells(tag: str, values: Sequence[str]) -> str:
        mine = {ours: " class=mine"} if tag == "td" else {}
        return "".join(f"<{tag}{mine.get(i, '')}>{html.escape(value)}</{tag}>" for i, value in enumerate(values))

    rows = "".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows)
    notes = "".join(f'<p class="soft">{html.escape(note)}</p>' for note in table.notes)
    head = html.escape(heading(table))
    return (
        f'<h3>{head}</h3><div class="wide" tabindex="0" role="region" aria-label="{head}"><table><thead><tr>'
        f"{cells('th', table.columns)}</tr></thead><tbody>{rows}</tbody></table></div>{notes}"
    )


def _figures(runs: Sequence[Run], problems: list[str]) -> str:
    found = []
    for name in FIGURES:
        try:
            figure, caption = drawn(name, runs)
        except NothingToShowError as error:
            problems.append(f"figure {name} is left out: {error}")
            continue
        with rc_context(_DARK):
            dark = drawn(name, runs)[0]
        found.append(_figure(figure, dark, f"Figure {name}. {caption}"))
    return "".join(found)


def _figure(figure: Figure, dark: Figure, caption: str) -> str:
    width, height = (round(96 * side) for side in figure.get_size_inches())
    text = html.escape(caption)
    # With width and height the layout does not move while images load, so links to sections below stay right.
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_image(dark, _DARK)}">'
        f'<img loading="lazy" width="{width}" height="{height}" alt="{text}" src="{_image(figure)}"></picture>'
        f"<figcaption>{text}</figcaption></figure>"
    )


def _searches(searches: Sequence[SearchRecord]) -> str:
    """A section for all searches; nothing without one."""
    if not searches:
        return ""
    parts = []
    for search in searches:
        parts.append(_table(search_table(search)))
        with rc_context({"font.size": 8}):
            drawn_light = search_figure(search)
        if drawn_light is not None:
            with rc_context({"font.size": 8, **_DARK}):
                dark = search_figure(search)
            assert dark is not None
            parts.append(_figure(drawn_light[0], dark[0], drawn_light[1]))
    return f'<section id="searches"><h2>Searches</h2>{"".join(parts)}</section>'


def _image(figure: Figure, style: Any = None) -> str:
    file = io.BytesIO()
    with rc_context(style or {}):
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def write_report(
    runs: Sequence[Run], tables: Sequence[Table], path: Path, searches: Sequence[SearchRecord] = ()
) -> None:
    """Write the page.

    Args:
        runs: to show.
        tables: the paper's tables.
        path: of the HTML file.
        searches: to show.

    Raises:
        UserError: path is a folder.
    """
    if path.is_dir():
        raise UserError(f"--out must be a file, got the folder {path}.")
    problems = problems_of(runs)
    with written_whole(path, "wb") as file:  # opened first: fail before drawing, not after
        page = _page(runs, tables, searches, problems)
        file.write(page.encode("utf-8", "backslashreplace"))
    print(f"{path}: {len(runs)} run{'s' if len(runs) != 1 else ''}, {len(page) / 2**20:.1f} MiB")
    for problem in problems:
        print(f"note: {problem}", file=sys.stderr)


def _page(runs: Sequence[Run], tables: Sequence[Table], searches: Sequence[SearchRecord], problems: list[str]) -> str:
    figures = _figures(runs, problems)
    rows, shared = _rows(runs)
    data = {
        "made": "Curves have at most 200 points.",
        "runs": rows,
        "shared": shared,
        "samples": _players(runs, problems),
        "problems": problems,
    }
    # Escaped, so that no name from a run can end the script or start an element.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")
    page = (resources.files("plif_lightning.analysis") / "report.html").read_text(encoding="utf-8")
    parts = {
        "<!--TABLES-->": "".join(_table(table) for table in tables if table.rows),
        "<!--FIGURES-->": figures,
        "<!--SEARCHES-->": _searches(searches),
        "<!--LINKS-->": '<a href="#searches">Searches</a>' if searches else "",
        "/*DATA*/": text,
    }
    # One pass: text of one part is not searched for the marker of another.
    return re.sub("|".join(map(re.escape, parts)), lambda mark: parts[mark[0]], page)
