"""Numbers that the Trainer, NumPy or PyTorch would not refuse, or not in words."""

from typing import Any

from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator

from plif_lightning.errors import UserError
from plif_lightning.runtime.cores import cores

# Where Lightning, NumPy or PyTorch would end in errors of their own, or train nothing without a word: least value.
_AT_LEAST = {
    "seed_everything": 0,
    "trainer.max_epochs": 1,
    "trainer.max_steps": 1,
    "trainer.limit_train_batches": 1,
    "trainer.accumulate_grad_batches": 1,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.val_check_interval": 1,
    "trainer.log_every_n_steps": 0,
    "trainer.gradient_clip_val": 0,
}
# Of an evaluation: what it is not to leave out whole.
_MEASURED = {"validate": "limit_val_batches", "test": "limit_test_batches", "predict": "limit_predict_batches"}
_WITHOUT_END = ("trainer.max_epochs", "trainer.max_steps")  # where they are -1


def require_ranges(config: Any, command: str) -> None:
    """Refuses numbers outside their ranges.

    Args:
        config: of the command.
        command: fit, validate, test or predict.

    Raises:
        UserError: one is.
    """
    limit = _MEASURED.get(command)
    if limit is not None and config.trainer[limit] == 0:
        raise UserError(f"trainer.{limit} must be above 0 for {command}, or nothing is measured, got 0.")
    for key, least in _AT_LEAST.items():
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or (value == -1 and key in _WITHOUT_END):
            continue
        # A share or a number: 0 may have been read as 0.0.
        share = key in ("trainer.limit_train_batches", "trainer.val_check_interval")
        if not value > 0 if share else value < least:
            raise UserError(f"{key} must be {'above 0' if share else f'at least {least}'}, got {value:g}.")
    if isinstance(config.get("seed_everything"), int) and config.seed_everything >= 2**32:
        raise UserError(f"seed_everything must be below 2^32, got {config.seed_everything}.")
    # Each would wait for its turn on a core, and start-up alone would take minutes.
    most = max(16, 4 * cores())
    devices, workers = config.get("trainer.devices"), config.get("data.init_args.num_workers")
    if str(devices).isdigit() and int(devices) > most and accelerator_of(config) == "cpu":
        raise UserError(
            f"trainer.devices must be at most {most} on the {cores()} cores of this machine, got {devices}."
        )
    if isinstance(workers, int) and workers > most:
        raise UserError(f"data.num_workers must be at most {most} on the {cores()} cores here, got {workers}.")


def refuse_combinations(config: Any, command: str, resumed: bool) -> None:
    """Refuse settings that mean nothing for a command, or that the program cannot honour.

    Raises:
        UserError: there is one.
    """
    if config.run_folder is not None and (command != "fit" or resumed):
        raise UserError(
            "run_folder names the folder of a new run: leave it out beside --ckpt_path last, and for all but fit."
        )
    if config.run_folder is not None and not config.run_folder.strip():
        raise UserError("run_folder must name a folder, got nothing.")
    if config.engine is not None and command not in ("predict", "test"):
        raise UserError(f"engine is a form for inference: leave it out for {command}.")
    if config.record_samples < 0:
        raise UserError(f"record_samples must be at least 0, got {config.record_samples}.")
    precision = str(config.trainer.precision)
    if precision in ("16", "16-mixed", "16-true") and accelerator_of(config) == "cpu":
        raise UserError(f"--trainer.precision {precision} needs a GPU: on a CPU pass bf16-mixed or 32-true.")
    if config.trainer.overfit_batches:
        raise UserError("trainer.overfit_batches would replace the data's order: pass limit_train_batches instead.")
    if config.trainer.barebones:
        raise UserError(
            "trainer.barebones would keep nothing of a run: pass --trainer.fast_dev_run true to try one, or "
            "--trainer.enable_checkpointing false to keep no checkpoints."
        )


def accelerator_of(config: Any) -> str:
    """Where a configuration will be computed: cpu, gpu, or what it names."""
    name = config.trainer.accelerator
    if name in ("auto", "gpu"):
        return "gpu" if CUDAAccelerator.is_available() or MPSAccelerator.is_available() else "cpu"
    return str(name)
