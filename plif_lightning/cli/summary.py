"""Print a command's inputs and results."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich import filesize
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from plif_lightning.callbacks import PredictionWriter, RunRecord
from plif_lightning.callbacks.averaging import averaging
from plif_lightning.callbacks.checkpoints import run_checkpoints
from plif_lightning.callbacks.engine import DeployedForm
from plif_lightning.callbacks.logger import is_fast_dev_run, run_folder
from plif_lightning.data import SpikingDataModule
from plif_lightning.network.user_networks import description, kernels_of
from plif_lightning.runs.metrics import layer_quantities, layer_values, read_metrics
from plif_lightning.runs.settings import limits_data
from plif_lightning.runtime import program
from plif_lightning.runtime.files import relative
from plif_lightning.training.task import SpikingClassifier

_C = TypeVar("_C", bound=Callback)


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _path_text(path: Path) -> str:
    return escape(relative(path))


def _print(table: Table) -> None:
    """Print a table, with an empty line before it."""
    console = Console()
    console.print()
    console.print(table)


def _table(title: str) -> Table:
    """Return an empty table of names and values."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def print_inventory(data: SpikingDataModule, checks: int | None) -> None:
    """Print the content of a data set: samples of each class and part, events, bytes.

    Args:
        data: data module, prepared.
        checks: number of checksums that were compared; None if they were not requested.
    """
    console = Console()
    note = f" ({data.origin_note})" if data.origin_note else ""
    console.print(f"[bold]{data.title}[/]{escape(note)} in {escape(str(data.root))}\n")
    console.print(_inventory(data))
    console.print("\nPrepared.")
    if checks is not None:
        console.print(
            f"{checks} checksums compared: all are right." if checks else "There are no checksums to compare."
        )


def _inventory(data: SpikingDataModule) -> Table:
    """Return a table of classes and parts."""
    parts = data.inventory()
    table = Table(box=None, pad_edge=False)
    table.add_column("class", style="cyan")
    for split in parts:
        table.add_column(split.name, justify="right")
    for name, *counts in zip(data.class_names, *(split.counts for split in parts), strict=True):
        table.add_row(name, *map("{:,}".format, counts))
    table.add_section()
    table.add_row("[bold]all[/]", *(f"[bold]{sum(split.counts):,}[/]" for split in parts))
    if any(split.events is not None for split in parts):
        table.add_row("events", *(f"{split.events:,}" for split in parts))
    if any(split.files for split in parts):
        table.add_row("files", *(split.files for split in parts))
    table.add_row("size", *(filesize.decimal(split.bytes) for split in parts))
    return table


def print_header(trainer: L.Trainer, network: nn.Module, data: SpikingDataModule) -> None:
    """Print network, data, protocol, device and folder of a fit that starts."""
    table = _table(f"{data.title}: fit")
    table.add_row("network", escape(description(network)))
    table.add_row("parameters", f"{sum(p.numel() for p in network.parameters()):,}, T = {data.time_steps}")
    table.add_row("data", data.describe())
    table.add_row("protocol", data.protocol)
    device = type(trainer.accelerator).__name__.removesuffix("Accelerator")
    processes = f" x {trainer.world_size}" if trainer.world_size > 1 else ""
    table.add_row("device", f"{device}{processes}, precision {trainer.precision}")
    if name := averaging(trainer):
        table.add_row("averaging", f"validation, test and best.ckpt use averaged weights ({name})")
    table.add_row("form", escape(kernels_of(network, trainer.strategy.root_device)))
    table.add_row("run folder", _path_text(run_folder(trainer).path))
    console = Console()
    console.print(table)
    console.print()


def _add_layers(table: Table, name: str, row: dict[str, float], kind: str) -> None:
    """Add a row with the values of each layer of a kind (`tau`, `rate`), if there are any."""
    if values := layer_values(row, kind):
        table.add_row(name, "  ".join(f"{layer} {value:.4g}" for layer, value in values.items()))


def _add_files(table: Table, *files: tuple[str, Path | None]) -> None:
    """Add a row for each file or folder that exists."""
    for name, path in files:
        if path is not None and path.exists():
            table.add_row(name, _path_text(path))


def print_fit(
    trainer: L.Trainer, data: SpikingDataModule, test: Mapping[str, float] | None, asked_for_test: bool
) -> None:
    """Print accuracy, protocol, layers and files of a fit, and the command that tests the run."""
    folder = run_folder(trainer)
    table = _table(f"{data.title}: fit finished")
    table.add_row("data", data.describe())
    _add_limits(table, trainer)
    table.add_row("protocol", data.protocol)
    _add_best_epoch(table, trainer, data, test)
    if asked_for_test and test is None:
        table.add_row("test accuracy", "[yellow]not measured: there is no best checkpoint[/]")
    if not is_fast_dev_run(trainer):
        _add_files(
            table,
            ("run folder", folder.path),
            ("best checkpoint", folder.best),
            ("last checkpoint", folder.last),
            ("metrics", folder.metrics),
        )
    _print(table)
    if folder.best.exists() and not is_fast_dev_run(trainer):
        # Outside the table, which would wrap the command: it must stay one line to be copied.
        command = f"{program.program_name()} test --ckpt_path {shlex.quote(relative(folder.best))}"
        Console().print(f"test this run: {command}", style="bold", markup=False, highlight=False, soft_wrap=True)


def _add_limits(table: Table, trainer: L.Trainer) -> None:
    """Say which parts of the data the Trainer left out: the sizes beside are the full ones."""
    limits = {name: getattr(trainer, f"limit_{name}_batches") for name in ("train", "val", "test", "predict")}
    texts = [f"limit_{name}_batches {limit}" for name, limit in limits.items() if limits_data(limit)]
    if texts:
        table.add_row("limits", f"[yellow]{', '.join(texts)}: results are of that part[/]")


def _add_best_epoch(
    table: Table, trainer: L.Trainer, data: SpikingDataModule, test: Mapping[str, float] | None
) -> None:
    """Add accuracy and layers of the epoch that was kept, and the training speed, if any epoch was validated."""
    metrics, checkpoints = read_metrics(run_folder(trainer).metrics), run_checkpoints(trainer)
    metric = f"{data.val_name}/acc"
    measured = [row for row in metrics if not math.isnan(row.get(metric, math.nan))]
    if not measured:
        return
    best = max(measured, key=lambda row: row[metric])
    if checkpoints is not None:
        best = next((row for row in measured if row["epoch"] == checkpoints.best_epoch), best)
    name = "best test epoch" if data.validation == "test" else "best validation epoch"
    of_average = ", averaged weights" if averaging(trainer) else ""
    epochs = metrics[-1]["epoch"] + 1  # rows are fewer where the run began from a checkpoint
    table.add_row(
        name, f"[bold]{_percent(best[metric])}[/] (epoch {best['epoch'] + 1:.0f} of {epochs:.0f}{of_average})"
    )
    if test is not None:
        table.add_row(
            "test accuracy", f"[bold green]{_percent(test['test/acc'])}[/] (measured once, on that epoch's weights)"
        )
    for kind in layer_quantities([best]):
        _add_layers(table, "firing rate" if kind == "rate" else kind, best, kind)
    if "train/samples_per_second" in metrics[-1]:
        table.add_row("speed", f"{metrics[-1]['train/samples_per_second']:.0f} training samples per second")


def print_evaluation(trainer: L.Trainer, data: SpikingDataModule) -> None:
    """Print the results of `validate`, `test` or `predict`, and the files that they were written to."""
    if not trainer.is_global_zero:
        return
    table = _table(f"{data.title}: {trainer.state.fn.value if trainer.state.fn else ''}")
    table.add_row("data", data.describe())
    _add_limits(table, trainer)
    table.add_row("protocol", data.protocol)
    if (form := _callback(trainer, DeployedForm)) is not None:
        table.add_row("engine", f"{form.engine}: {form.forms}")
    _add_metrics(table, {name: float(value) for name, value in trainer.callback_metrics.items()}, data)
    if trainer.ckpt_path:
        table.add_row("checkpoint", _path_text(Path(trainer.ckpt_path)))
    writer, folder = _callback(trainer, PredictionWriter), run_folder(trainer)
    _add_files(
        table,
        ("predictions", None if writer is None else writer.path),
        ("confusion matrix", folder.confusion_matrix),
    )
    _print(table)


def _callback(trainer: L.Trainer, kind: type[_C]) -> _C | None:
    """Return the trainer's callback of a class; None if it has none."""
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]


def _add_metrics(table: Table, row: dict[str, float], data: SpikingDataModule) -> None:
    """Add accuracy, loss, accuracy per class and firing rates."""
    for prefix in ("test", data.val_name):
        if f"{prefix}/acc" in row:
            label = "accuracy (test set)" if prefix == "test_as_val" else "accuracy"
            table.add_row(label, f"[bold green]{_percent(row[f'{prefix}/acc'])}[/]")
            table.add_row("loss", f"{row[f'{prefix}/loss']:.5f}")
    classes = {name: row[k] for i, name in enumerate(data.class_names) if (k := f"test/acc_class/{i}") in row}
    if classes:
        table.add_row("per class", "  ".join(f"{name} {100 * value:.1f}" for name, value in classes.items()))
    _add_layers(table, "firing rate", row, "rate")


class Header(Callback):
    """Prints the header of a fit when it starts, and the form of each layer after the first validation.

    Args:
        record: has the form of each layer.
    """

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self._printed_forms = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SpikingClassifier)
        if trainer.is_global_zero:
            data: SpikingDataModule = trainer.datamodule  # type: ignore[attr-defined]
            print_header(trainer, pl_module.network, data)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        forms, self._printed_forms = {} if self._printed_forms else self.record.forms, bool(self.record.forms)
        if forms and trainer.is_global_zero:
            table = _table("form of each layer")
            for name, form in forms.items():
                table.add_row(name, escape(form))
            _print(table)
