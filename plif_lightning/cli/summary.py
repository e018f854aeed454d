"""What a command says at its end."""

import logging
import math
import shlex
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich import filesize
from rich.markup import escape
from rich.table import Table

from plif_lightning.callbacks import PredictionWriter
from plif_lightning.callbacks.checkpoints import best_checkpoint
from plif_lightning.callbacks.engine import DeployedForm
from plif_lightning.callbacks.logger import is_trial, run_folder
from plif_lightning.data import SpikingDataModule
from plif_lightning.network import SpikingNetwork
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.metrics import layer_values, read_metrics
from plif_lightning.runtime import program
from plif_lightning.runtime.console import Console
from plif_lightning.runtime.files import relative
from plif_lightning.training.task import SpikingClassifier

_log = logging.getLogger(__name__)


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _layers(row: dict[str, float], kind: str, form: str) -> str:
    return "  ".join(f"{layer} {value:{form}}" for layer, value in layer_values(row, kind).items())


def _shown(path: Path) -> str:
    return escape(relative(path))


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def print_inventory(data: SpikingDataModule, checks: int | None) -> None:
    """Prints what there is of a data set: samples of each class and part, events, bytes.

    Args:
        data: that was prepared.
        checks: how many checksums were compared; None where nobody asked for it.
    """
    parts = data.inventory()
    table = Table(box=None, pad_edge=False)
    table.add_column("class", style="cyan")
    for part in parts:
        table.add_column(part.name, justify="right")
    for name, *counts in zip(data.class_names, *(part.counts for part in parts), strict=True):
        table.add_row(name, *(f"{count:,}" for count in counts))
    table.add_section()
    table.add_row("[bold]all[/]", *(f"[bold]{sum(part.counts):,}[/]" for part in parts))
    if any(part.events is not None for part in parts):
        table.add_row("events", *(f"{part.events:,}" for part in parts))
    table.add_row("size", *(filesize.decimal(part.bytes) for part in parts))
    console = Console()
    note = f" ({data.origin_note})" if data.origin_note else ""
    console.print(f"[bold]{data.title}[/]{escape(note)} in {escape(str(data.root))}\n")
    console.print(table)
    console.print("\nPrepared." if data.prepared else "\nNothing to do: everything was there already.")
    if checks is not None:
        console.print(
            f"{checks} checksums compared: all are right." if checks else "There are no checksums to compare."
        )


def print_header(trainer: L.Trainer, network: SpikingNetwork, data: SpikingDataModule) -> None:
    """Prints what is about to be trained."""
    table = _table(f"{data.title}: fit")
    table.add_row("network", str(network.structure))
    table.add_row("parameters", f"{sum(p.numel() for p in network.parameters()):,}, T = {network.time_steps}")
    table.add_row("data", data.describe())
    table.add_row("protocol", data.protocol)
    device = type(trainer.accelerator).__name__.removesuffix("Accelerator")
    processes = f" x {trainer.world_size}" if trainer.world_size > 1 else ""
    table.add_row("device", f"{device}{processes}, precision {trainer.precision}")
    table.add_row("form", escape(network.kernels(trainer.strategy.root_device)))
    table.add_row("run folder", _shown(run_folder(trainer).path))
    console = Console()
    console.print(table)
    console.print()


def _add_files(table: Table, folder: RunFolder) -> None:
    """Rows for what the run's folder holds."""
    for name, path in (
        ("run folder", folder.path),
        ("best checkpoint", folder.best),
        ("last checkpoint", folder.last),
        ("metrics", folder.metrics),
        ("learning curve", folder.learning_curve),
        ("tau curve", folder.tau_curve),
    ):
        if path.exists():
            table.add_row(name, _shown(path))


def _warn_of_ties(best: int, epochs: int, data: SpikingDataModule) -> None:
    """Says so where many epochs have the best accuracy, so that it tells little which of them was kept."""
    if best > 1 and 3 * best >= epochs:
        sizes = data.sizes()
        samples = sizes.get("val", sizes.get("test as val"))
        _log.warning(
            "%d of %d epochs reached the best accuracy: the %s validation samples cannot tell them apart, and which of "
            "them was kept says little. Hold more out (data.holdout_fraction), or train longer.",
            *(best, epochs, "" if samples is None else f"{samples:,}"),
        )


def print_fit(
    trainer: L.Trainer, data: SpikingDataModule, test: Mapping[str, float] | None, asked_for_test: bool
) -> None:
    """Prints accuracy and its protocol, layers, files, and the command that tests the run."""
    folder = run_folder(trainer)
    metrics = read_metrics(folder.metrics) if folder.metrics.is_file() else []
    key = f"{data.val_name}/acc"
    measured = [row for row in metrics if key in row and not math.isnan(row[key])]
    table = _table(f"{data.title}: fit finished")
    table.add_row("data", data.describe())
    table.add_row("protocol", data.protocol)
    if measured:
        best = max(measured, key=lambda row: row[key])
        kept = best_checkpoint(trainer)
        if kept is not None and kept.best_model_score is not None and folder.best.exists():
            # Where validation runs several times an epoch, the best one need not be the epoch's last.
            checkpoint = torch.load(folder.best, map_location="cpu", weights_only=True, mmap=True)
            row = next((row for row in metrics if row["epoch"] == checkpoint["epoch"]), best)
            best = {**row, key: float(kept.best_model_score)}
        _warn_of_ties(sum(math.isclose(row[key], best[key], abs_tol=1e-9) for row in measured), len(measured), data)
        epoch = f"epoch {best['epoch'] + 1:.0f} of {len(metrics)}"
        name = "best test epoch" if data.validation == "test" else "best validation epoch"
        table.add_row(name, f"[bold]{_percent(best[key])}[/] ({epoch})")
        if test is not None:
            table.add_row(
                "test accuracy", f"[bold green]{_percent(test['test/acc'])}[/] (measured once, on that epoch's weights)"
            )
        if layer_values(best, "tau"):
            table.add_row("tau", _layers(best, "tau", ".3f"))
        if layer_values(best, "rate"):
            table.add_row("firing rate", _layers(best, "rate", ".3f"))
        if "train/samples_per_second" in metrics[-1]:
            table.add_row("speed", f"{metrics[-1]['train/samples_per_second']:.0f} training samples per second")
    if asked_for_test and test is None:
        table.add_row("test accuracy", "[yellow]not measured: no validation chose an epoch[/]")
    if not is_trial(trainer):
        _add_files(table, folder)
    console = Console()
    console.print()
    console.print(table)
    if folder.best.exists() and not is_trial(trainer):
        # Not in the table, which would fold it: it is there to be copied.
        command = f"{program.shown()} test --ckpt_path {shlex.quote(relative(folder.best))}"
        console.print(f"test this run: {command}", style="bold", markup=False, highlight=False, soft_wrap=True)


def print_evaluation(trainer: L.Trainer, data: SpikingDataModule) -> None:
    """Prints what `validate`, `test` or `predict` measured, and where it wrote it."""
    if not trainer.is_global_zero:
        return
    row = {key: float(value) for key, value in trainer.callback_metrics.items()}
    table = _table(f"{data.title}: {trainer.state.fn.value if trainer.state.fn else ''}")
    table.add_row("data", data.describe())
    table.add_row("protocol", data.protocol)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, DeployedForm):
            table.add_row("engine", f"{callback.engine}: {callback.forms}")
    for prefix in ("test", data.val_name):
        if f"{prefix}/acc" in row:
            label = "accuracy" if prefix != "test_as_val" else "accuracy (test set)"
            table.add_row(label, f"[bold green]{_percent(row[f'{prefix}/acc'])}[/]")
            table.add_row("loss", f"{row[f'{prefix}/loss']:.5f}")
    classes = {name: row[k] for i, name in enumerate(data.class_names) if (k := f"test/acc_class/{i}") in row}
    if classes:
        table.add_row("per class", "  ".join(f"{name} {100 * value:.1f}" for name, value in classes.items()))
    if layer_values(row, "rate"):
        table.add_row("firing rate", _layers(row, "rate", ".3f"))
    ckpt = trainer.ckpt_path
    if ckpt:
        table.add_row("checkpoint", _shown(Path(ckpt)))
    folder = run_folder(trainer)
    writers = [c for c in trainer.callbacks if isinstance(c, PredictionWriter)]  # type: ignore[attr-defined]
    if writers and writers[0].path is not None:
        table.add_row("predictions", _shown(writers[0].path))
    for path in (folder.confusion_counts, folder.confusion_picture):
        if path.is_file():
            table.add_row("confusion matrix", _shown(path))
    console = Console()
    console.print()
    console.print(table)


class Header(Callback):
    """Says at the start of a fit what is trained, on what, in which form, how it is measured, and where it goes."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SpikingClassifier)
        if trainer.is_global_zero:
            data: SpikingDataModule = trainer.datamodule  # type: ignore[attr-defined]
            print_header(trainer, pl_module.network, data)
            _log.info("%s; %s", data.describe(), pl_module.network.kernels(trainer.strategy.root_device))
