"""Refuse numbers and combinations that Lightning, NumPy or PyTorch accept silently or with an unclear error."""

import inspect
from collections.abc import Collection
from typing import Any

from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator

from plif_lightning.errors import UserError
from plif_lightning.network.own import imported_network
from plif_lightning.runtime.process import cores
from plif_lightning.structure import FROM_DATA

# Smallest value of each number.
_AT_LEAST = {
    "seed_everything": 0,
    "trainer.max_epochs": 1,
    "trainer.max_steps": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.log_every_n_steps": 0,
    "trainer.gradient_clip_val": 0,
}
# Shares or numbers of batches: the smallest value is above 0, which may have been read as 0.0.
_ABOVE_ZERO = ("trainer.limit_train_batches", "trainer.val_check_interval")
# Setting that limits the batches of each evaluation.
_MEASURED = {"validate": "limit_val_batches", "test": "limit_test_batches", "predict": "limit_predict_batches"}
_WITHOUT_END = ("trainer.max_epochs", "trainer.max_steps")  # -1 means no limit


def require_ranges(config: Any, command: str) -> None:
    """Refuse numbers outside their ranges.

    Args:
        config: configuration of the command.
        command: fit, validate, test or predict.

    Raises:
        UserError: a number is outside its range.
    """
    limit = _MEASURED.get(command)
    if limit is not None and config.trainer[limit] == 0:
        raise UserError(f"trainer.{limit} must be above 0 for {command}, or nothing is measured, got 0.")
    if command == "fit" and config.get("test_after_fit") and config.trainer.limit_test_batches == 0:
        raise UserError(
            "trainer.limit_test_batches must be above 0 with test_after_fit: pass --test_after_fit false for no test."
        )
    for key in (*_AT_LEAST, *_ABOVE_ZERO):
        _require_least(key, config.get(key))
    if isinstance(config.get("seed_everything"), int) and config.seed_everything >= 2**32:
        raise UserError(f"seed_everything must be below 2^32, got {config.seed_everything}.")
    _require_few_processes(config)


def _require_least(key: str, value: Any) -> None:
    """Refuse a number below its smallest value; values of other types are left to the parser."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (value == -1 and key in _WITHOUT_END):
        return
    if key in _ABOVE_ZERO and not value > 0:
        raise UserError(f"{key} must be above 0, got {value:g}.")
    if key in _AT_LEAST and value < _AT_LEAST[key]:
        raise UserError(f"{key} must be at least {_AT_LEAST[key]}, got {value:g}.")


def _require_few_processes(config: Any) -> None:
    """Refuse many more processes than cores: start-up alone would take minutes."""
    most = max(16, 4 * cores())
    devices, workers = config.get("trainer.devices"), config.get("data.init_args.num_workers")
    if str(devices).isdigit() and int(devices) > most and accelerator_of(config) == "cpu":
        raise UserError(
            f"trainer.devices must be at most {most} on the {cores()} cores of this machine, got {devices}."
        )
    if isinstance(workers, int) and workers > most:
        raise UserError(f"data.num_workers must be at most {most} on the {cores()} cores here, got {workers}.")


def refuse_combinations(config: Any, command: str, resumed: bool) -> None:
    """Refuse settings that have no effect in a command, or that the program cannot honour.

    Raises:
        UserError: there is one.
    """
    folder, precision = config.run_folder, str(config.trainer.precision)
    refused = (
        (
            folder is not None and (command != "fit" or resumed),
            "run_folder names the folder of a new run: it is only for fit, without --ckpt_path last.",
        ),
        (folder is not None and not folder.strip(), "run_folder must name a folder, got nothing."),
        (
            config.engine is not None and command not in ("predict", "test"),
            f"engine is for test and predict: leave it out for {command}.",
        ),
        (config.record_samples < 0, f"record_samples must be at least 0, got {config.record_samples}."),
        (
            precision in ("16", "16-mixed", "16-true") and accelerator_of(config) == "cpu",
            f"--trainer.precision {precision} needs a GPU: on a CPU pass bf16-mixed or 32-true.",
        ),
        (
            config.trainer.overfit_batches,
            "trainer.overfit_batches would replace the data's order: pass limit_train_batches instead.",
        ),
        (
            config.trainer.barebones,
            (
                "trainer.barebones would keep nothing of a run: pass --trainer.fast_dev_run true to try one, or "
                "--trainer.enable_checkpointing false to keep no checkpoints."
            ),
        ),
    )
    for is_refused, message in refused:
        if is_refused:
            raise UserError(message)


def refuse_own(network: Any, given: Collection[str]) -> None:
    """Refuse a network of one's own beside a structure, or without an argument that it needs.

    Args:
        network: class_path and init_args.
        given: names of the options on the command line.

    Raises:
        UserError: there is such a mistake.
    """
    if "--model.structure" in given:
        raise UserError("--model.structure and --model.network describe two networks: give one of them.")
    arguments = network.get("init_args") or {}
    for name, parameter in inspect.signature(imported_network(network["class_path"])).parameters.items():
        # jsonargparse takes an argument without a type for null.
        plain = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        needed = plain and parameter.default is parameter.empty and name not in FROM_DATA
        if needed and arguments.get(name) is None and parameter.annotation is parameter.empty:
            raise UserError(f"{network['class_path']} needs {name}: pass --model.network.{name} VALUE.")


def accelerator_of(config: Any) -> str:
    """Return the accelerator that a configuration selects: cpu, gpu, or the name that it gives."""
    name = config.trainer.accelerator
    if name in ("auto", "gpu"):
        return "gpu" if CUDAAccelerator.is_available() or MPSAccelerator.is_available() else "cpu"
    return str(name)


def refuse_time_interval(trainer: Any) -> None:
    """Refuse validation after a time interval in several processes."""
    if trainer.world_size > 1 and getattr(trainer, "_val_check_time_interval", None) is not None:
        raise UserError(
            "trainer.val_check_interval must be a number of batches with several processes: their clocks differ, and "
            "one would validate while another trains."
        )


def refuse_empty_test(limit: float | int, batches: int) -> None:
    """Refuse a share of the test set's batches, for the test after a fit, that is less than one batch."""
    if isinstance(limit, float) and int(limit * batches) < 1:
        raise UserError(
            f"trainer.limit_test_batches={limit:g} leaves none of the {batches} batches of the test after the fit: "
            "pass a larger one, or --test_after_fit false."
        )
