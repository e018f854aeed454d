"""The paper's figures, drawn from this project's runs.

Each is a function of runs that returns a figure and its caption. Explanations belong in the caption, not in the
figure; widths are a paper's column or two.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from plif_lightning.analysis.figures.accuracy import figure_6
from plif_lightning.analysis.figures.layers import figure_layers
from plif_lightning.analysis.figures.leaderboard import figure_leaderboard
from plif_lightning.analysis.figures.neurons import figure_1b, figure_2, figure_5b
from plif_lightning.analysis.figures.page import Drawn, NoDataError
from plif_lightning.analysis.figures.samples import figure_s2, figure_s3, figure_s4, figure_s5
from plif_lightning.analysis.figures.taus import figure_7
from plif_lightning.analysis.figures.weights import figure_s1
from plif_lightning.events.tables import TimeUnit
from plif_lightning.runs.run import Run
from plif_lightning.runtime.files import atomic_write

__all__ = ["FIGURES", "Drawn", "NoDataError", "drawn", "write_figures", "write_recording"]

FIGURES: dict[str, Callable[[Sequence[Run]], Drawn]] = {
    "1b": figure_1b,
    "2": figure_2,
    "5b": figure_5b,
    "6": figure_6,
    "7": figure_7,
    "S1": figure_s1,
    "S2": figure_s2,
    "S3": figure_s3,
    "S4": figure_s4,
    "S5": figure_s5,
    "layers": figure_layers,
    "leaderboard": figure_leaderboard,
}


def drawn(name: str, runs: Sequence[Run]) -> Drawn:
    """Draw a figure and return it with its caption.

    Args:
        name: a key of FIGURES.
        runs: to choose from.

    Raises:
        NoDataError: no run has the data that the figure needs, or a run's data cannot be drawn.
    """
    try:
        with rc_context({"font.size": 8}):
            return FIGURES[name](runs)
    except NoDataError:
        raise
    except Exception as error:  # the files of a run may hold anything; the other figures can still be drawn
        raise NoDataError(f"a run has data that cannot be drawn ({type(error).__name__}: {error}).") from error


def _save(figure: Figure, stem: Path) -> None:
    """Write a figure as PDF and PNG."""
    # Without dates and versions the same runs give identical files; Type 42 embeds fonts as TrueType.
    with rc_context({"pdf.fonttype": 42}):
        for kind, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
            path = stem.parent / f"{stem.name}.{kind}"
            with atomic_write(path, "wb") as file:
                figure.savefig(file, format=kind, metadata=metadata)
            print(path)


def write_recording(
    path: Path, folder: Path, columns: Sequence[str] | None = None, time_unit: TimeUnit | None = None
) -> None:
    """Draw a recording as PDF and PNG, and print its caption.

    Raises:
        UserError: the file cannot be read or holds no events.
    """
    from plif_lightning.analysis.figures.recording import recording_figure
    from plif_lightning.events.readers import read_any, sensor_of

    figure, caption = recording_figure(read_any(path, columns, time_unit), sensor_of(path), path.name)
    above = path.absolute().parent.name  # files in class folders often have the same names
    _save(figure, folder / f"recording-{above}-{path.stem}")
    print(caption)


def write_figures(runs: Sequence[Run], folder: Path, names: Sequence[str]) -> int:
    """Write each figure as PDF and PNG and all captions to `captions.md`; report figures that cannot be drawn.

    Returns:
        Exit status: 1 if no figure could be drawn.
    """
    captions = {}
    for name in names:
        try:
            figure, captions[name] = drawn(name, runs)
        except NoDataError as error:
            print(f"figure {name} is left out: {error}", file=sys.stderr)
            continue
        _save(figure, folder / f"figure{name}")
    if captions:
        with atomic_write(folder / "captions.md") as file:
            file.writelines(f"**Figure {name}.** {caption}\n\n" for name, caption in captions.items())
        print(folder / "captions.md")
    return 0 if captions else 1
