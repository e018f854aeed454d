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


def accelerator_of(config: Any) -> str:
    """Where a configuration will be computed: cpu, gpu, or what it names."""
    name = config.trainer.accelerator
    if name in ("auto", "gpu"):
        return "gpu" if CUDAAccelerator.is_available() or MPSAccelerator.is_available() else "cpu"
    return str(name)
