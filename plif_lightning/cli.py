"""The command line: what ties data, task, checkpoints and run folders together."""

import difflib
import inspect
import itertools
import json
import logging
import pickle
import re
import sys
import traceback
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback

from plif_lightning import data as data_module
from plif_lightning.analysis.runs import RunFolder
from plif_lightning.callbacks import (
    BestCheckpoint,
    ConfusionMatrix,
    CurvePlots,
    LastCheckpoint,
    LayerMonitor,
    PredictionWriter,
    ProgressBar,
    RunLogger,
    best_checkpoint,
    is_trial,
    run_folder,
)
from plif_lightning.data import ImageAugmentation, SpikingDataModule
from plif_lightning.errors import CheckpointError, UserError
from plif_lightning.events.augment import EventAugmentation
from plif_lightning.files import written_whole
from plif_lightning.records import CommandRecord, SampleRecord, WeightRecord, write_result, write_test_result
from plif_lightning.summary import print_evaluation, print_fit, print_header, print_inventory
from plif_lightning.task import SpikingClassifier
from plif_lightning.wandb_logging import WandbRecord, WandbRunLogger

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
READERS = ("sweep", "tables", "figures", "report")  # which plif_lightning/commands.py answers itself
_EVALUATIONS = ("validate", "test", "predict")
_HELP = {
    "fit": "Train a network and keep its best and its last checkpoint.",
    "validate": "Measure a checkpoint on the validation part of its own run.",
    "test": "Measure a checkpoint on the test set: accuracy, per class too, and confusion matrix.",
    "prepare": "Fetch, verify and unpack the data set of a configuration, and say what is there.",
    "predict": "Write a checkpoint's predictions and votes for the test set into a csv file.",
}
_log = logging.getLogger(__name__)


class Parser(LightningArgumentParser):
    """Says what is wrong in one sentence, with the nearest known key where an unknown one was given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviation would turn a mistyped key into another one.
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise _own_error(ex) or UserError(_in_one_sentence(message, self)) from ex


def _own_error(error: BaseException | None) -> UserError | None:
    """The UserError that an argument's class raised, out of what jsonargparse wrapped around it."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _known_keys(parser: Any) -> set[str]:
    keys = {"data.class_path"}
    for action in parser._actions:
        keys.add(action.dest)
        for sub in (getattr(action, "_name_parser_map", None) or {}).values():
            keys |= _known_keys(sub)
    for data in _data_classes().values():
        keys |= {f"data.{name}" for name in inspect.signature(data).parameters}
    return keys


def _data_classes() -> dict[str, type[SpikingDataModule]]:
    classes = {name: c for name, c in vars(data_module).items() if isinstance(c, type)}
    return {name: c for name, c in classes.items() if issubclass(c, SpikingDataModule) and c is not SpikingDataModule}


def _nearest(key: str, known: Iterable[str]) -> str:
    """` Did you mean X?` for the known key that is most alike, or nothing."""
    known = list(known)
    matches = difflib.get_close_matches(key, known, n=1, cutoff=0.7)
    if not matches:
        by_last_name = {name.rsplit(".", 1)[-1]: name for name in known}
        matches = [
            by_last_name[n] for n in difflib.get_close_matches(key.rsplit(".", 1)[-1], by_last_name, n=1, cutoff=0.75)
        ]
    if not matches:
        return ""
    # Inside a class of its own, jsonargparse knows only the last part of a name.
    full = [name for name in known if name.rsplit(".", 1)[-1] == matches[0]]
    return f" Did you mean {max(full, key=len) if full else matches[0]}?"


def _in_one_sentence(message: str, parser: Any) -> str:
    message = re.sub(r"\s*\n\s*", " ", message).strip()
    if unknown := re.search(r"unrecognized arguments: (?:--)?([\w.]+)", message):
        key = unknown[1]
    elif unknown := re.search(r"(?:[Oo]ption|[Kk]ey) '([\w.]+)'(?: is not|$)", message):
        key = unknown[1]
        inside = re.match(r'Parser key "([\w.]+)"', message)
        if inside and not key.startswith(inside[1]):
            key = f"{inside[1]}.{key}"
    elif data := re.search(r"Expected a dot import path string: (\S+)", message):
        names = list(_data_classes())
        return f"data must be one of {', '.join(names)} or a class path, got {data[1]!r}.{_nearest(data[1], names)}"
    elif re.match(r'Parser key "(?:data\.)?(?:init_args\.)?augmentation', message):
        base = EventAugmentation if EventAugmentation.__name__ in message else ImageAugmentation
        names = [
            n for n, c in vars(data_module).items() if isinstance(c, type) and issubclass(c, base) and c is not base
        ]
        given = re.search(r"Given value: (.*)$", message)
        return (
            f"data.augmentation of this data set must be a list of {', '.join(names)}; "
            f"got {given[1] if given else '?'}. "
            "On the command line: --data.augmentation+=NAME --data.augmentation.ARGUMENT=VALUE."
        )
    elif re.search(r"arguments are required: \w+\.data$", message):
        return f"{message}: pass --config configs/X.yaml, or --data with one of {', '.join(_data_classes())}."
    else:
        return message
    key = key.replace("init_args.", "")
    owners = [name for name, c in _data_classes().items() if key in inspect.signature(c).parameters]
    if owners and message.startswith("Option"):  # said inside the class of the data set that was chosen
        *most, last = owners
        return f"this data set has no argument {key}: only {', '.join(most)}{' and ' if most else ''}{last} have it."
    return f"unknown argument {key}.{_nearest(key, _known_keys(parser))}"


class SaveConfig(SaveConfigCallback):
    """Writes the full configuration into the run's folder, every checkpoint, and other loggers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "save_to_log_dir": False})
        # A run is configured by what it trains, not by where it happened to be resumed.
        config = self.config.clone()
        config.ckpt_path = config.run_folder = None
        self.text = self.parser.dump(config, skip_none=False, format="yaml")

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        log_dir = next((logger.log_dir for logger in trainer.loggers if isinstance(logger, RunLogger)), None)
        if log_dir is not None:
            folder = RunFolder(Path(log_dir))
            with written_whole(folder.config) as file:
                file.write(self.text)
        for logger in trainer.loggers:
            if not isinstance(logger, RunLogger):
                logger.log_hyperparams(yaml.safe_load(self.text))

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["cli_config"] = self.text
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, SpikingDataModule):
            checkpoint["training_set"] = data.identity()


def read_checkpoint(path: Path) -> tuple[dict[str, Any], int, str | None]:
    """The configuration stored in a checkpoint, its step, and the identity of its training set.

    Raises:
        CheckpointError: there is no such file, or it is not a whole checkpoint of this project.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: pass a file, such as --ckpt_path RUN/checkpoints/best.ckpt.")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0][:200]
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: it is truncated or another file ({reason})."
        ) from error
    if not isinstance(checkpoint, dict) or not {"cli_config", "state_dict", "global_step"} <= checkpoint.keys():
        raise CheckpointError(f"{path} is not a checkpoint that `main.py fit` wrote: it holds no configuration.")
    return yaml.safe_load(checkpoint["cli_config"]), checkpoint["global_step"], checkpoint.get("training_set")


def _flatten(value: Any, key: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            k: v for name, part in value.items() for k, v in _flatten(part, f"{key}.{name}" if key else name).items()
        }
    return {key: value}


class _Trainer(L.Trainer):
    """Lightning's, with the name of the command that needs none."""

    def prepare(self, model: L.LightningModule, datamodule: SpikingDataModule, verify: bool = False) -> None:
        """See `PlifCLI.prepare`.

        Args:
            verify: read all that was prepared once, and compare its checksums.
        """


def holds_out(config: dict[str, Any]) -> bool:
    """Whether a run holds out a part of the training set."""
    return bool(config["data"]["init_args"].get("validation") == "holdout")


class SameData(Callback):
    """Refuses to go on with a run, or to validate it on what it held out, where the training set has changed.

    Another training set is split in another way: samples that the network was trained on would be called held out.

    Args:
        identity: of the training set of the run; None where a checkpoint knows none.
    """

    def __init__(self, identity: str | None) -> None:
        self.identity = identity

    def _require(self, trainer: L.Trainer) -> None:
        data = getattr(trainer, "datamodule", None)
        if self.identity is not None and isinstance(data, SpikingDataModule) and data.identity() != self.identity:
            raise CheckpointError(
                f"the training set in {data.root} is not the one that the checkpoint's run was trained on. Bring that "
                "one back, or start a new run without --ckpt_path."
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._require(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate" and trainer.datamodule.validation == "holdout":  # type: ignore[attr-defined]
            self._require(trainer)


class PlifCLI(LightningCLI):
    """LightningCLI with `configs/base.yaml` under every configuration, and checkpoints that know theirs."""

    def __init__(self, args: ArgsType = None) -> None:
        self.folder: RunFolder | None = None  # of the run to go on with, or whose checkpoint is evaluated
        self.stored: dict[str, Any] | None = None
        self.resume_step = 0
        self.training_set: str | None = None
        super().__init__(
            SpikingClassifier,
            SpikingDataModule,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            trainer_class=_Trainer,
            seed_everything_default=2020,
            parser_class=Parser,
            parser_kwargs={name: {"default_config_files": [str(CONFIGS / "base.yaml")]} for name in self.subcommands()},
            auto_configure_optimizers=False,
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {**LightningCLI.subcommands(), "prepare": {"model", "datamodule"}}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        kwargs.setdefault(
            "description",
            "Spiking networks with learnable membrane time constants (PLIF). Beside the subcommands below there are "
            f"{', '.join(READERS)}: see `main.py NAME --help`.",
        )
        return super().init_parser(**kwargs)

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        super().setup_parser(*args, **kwargs)
        # Lightning shows the first lines of its own methods' docstrings here, cut off in mid-sentence.
        subcommands = self.parser._subcommands_action
        assert subcommands is not None
        for choice in subcommands._choices_actions:
            choice.help = self._subcommand_parsers[choice.dest].description = _HELP[choice.dest]

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(LastCheckpoint, "checkpoint")
        parser.add_argument(
            "--run_folder",
            type=str | None,
            default=None,
            help="Where a fit keeps its files, instead of runs/NAME/version_N.",
        )
        parser.add_argument(
            "--record_samples",
            type=int,
            default=10,
            help="Record the best network's spikes for so many samples, one of a class, when a fit has ended.",
        )
        parser.add_argument(
            "--test_after_fit", type=bool, default=False, help="Test the best checkpoint once, right after fit."
        )
        for name in ("input_shape", "num_classes", "time_steps"):
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")

    # --- checkpoints and the configurations in them

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert args is None or isinstance(args, list)
        argv = self.arguments = list(sys.argv[1:] if args is None else args)
        subcommand = next((a for a in argv if not a.startswith("-")), None)
        informative = {"-h", "--help", "--print_config"} & {a.split("=")[0] for a in argv}
        if subcommand in self.subcommands() and not informative:
            argv = self._with_checkpoint(subcommand, argv)
        self.config = parser.parse_args(argv)
        if self.stored is not None:
            self._refuse_other_settings(str(subcommand))
        elif self.config[self.config.subcommand].get("ckpt_path") is not None:
            raise CheckpointError("ckpt_path stands in a configuration file: pass it as --ckpt_path instead.")

    def _with_checkpoint(self, subcommand: str, argv: list[str]) -> list[str]:
        """The arguments with `--ckpt_path` as a file, and before them the configuration stored in it."""
        at = next((i for i, a in enumerate(argv) if a.split("=")[0] == "--ckpt_path"), None)
        if at is None:
            if subcommand in _EVALUATIONS:
                raise CheckpointError(
                    f"{subcommand} needs a checkpoint, or it would measure random weights: "
                    f"pass --ckpt_path RUN/checkpoints/best.ckpt."
                )
            return argv
        inline = "=" in argv[at]
        given = argv[at].split("=", 1)[1] if inline else argv[at + 1] if at + 1 < len(argv) else ""
        if not given or given.startswith("--"):
            raise CheckpointError("--ckpt_path needs a file, such as RUN/checkpoints/last.ckpt.")
        rest = argv[:at] + argv[at + (1 if inline else 2) :]
        resume_in_place = given == "last"
        path = self._last_of(rest) if resume_in_place else Path(given)
        if subcommand in _EVALUATIONS and resume_in_place:
            raise CheckpointError(f"{subcommand} needs the file: pass --ckpt_path RUN/checkpoints/last.ckpt.")
        self.stored, step, self.training_set = read_checkpoint(path)
        argv = [*rest, f"--ckpt_path={path}"]
        if subcommand == "fit":
            if resume_in_place:
                self.folder, self.resume_step = RunFolder.of_checkpoint(path), step
            return argv
        self.folder = RunFolder.of_checkpoint(path)
        kept = {key: self.stored[key] for key in ("seed_everything", "model", "data")}
        kept["trainer"] = {"precision": self.stored["trainer"]["precision"]}
        after = argv.index(subcommand) + 1
        return [*argv[:after], f"--config={yaml.safe_dump(kept)}", *argv[after:]]

    @staticmethod
    def _last_of(argv: list[str]) -> Path:
        """`last.ckpt` of the run whose configuration is given with `--config RUN/config.yaml`."""
        values = [a.split("=", 1)[1] for a in argv if a.startswith(("--config=", "-c="))]
        values += [b for a, b in itertools.pairwise(argv) if a in ("--config", "-c")]
        tried = [RunFolder(Path(value).parent).last for value in values]
        for path in reversed(tried):
            if path.is_file():
                return path
        raise CheckpointError(
            "--ckpt_path last goes on with a run, named by --config RUN/config.yaml, but there is no "
            f"{' or '.join(map(str, tried)) or 'such configuration'}. Leave --ckpt_path out to start a new run."
        )

    def _refuse_other_settings(self, subcommand: str) -> None:
        assert self.stored is not None
        parser = self._parser(subcommand)
        given = yaml.safe_load(parser.dump(self.config[subcommand], skip_none=False, format="yaml"))
        keys = ["model", "data.init_args.validation", "data.init_args.holdout_fraction"]
        if subcommand == "fit":
            # what else decides which samples the next batches hold
            keys += ["seed_everything", "data.class_path"]
            keys += [
                f"data.init_args.{name}"
                for name in ("time_steps", "batch_size", "drop_last", "source", "slicing", "size", "time_order")
            ]
        elif holds_out(self.stored):
            keys += [f"data.init_args.{name}" for name in ("source", "time_order")]
        # With another split, samples that the network was trained on would be called held out.
        old, new = _flatten(self.stored), _flatten(given)
        compared = [
            k for k in sorted(old.keys() | new.keys()) if any(k == key or k.startswith(f"{key}.") for key in keys)
        ]
        differences = [
            f"{k.replace('.init_args', '')} is {old.get(k)!r} there, {new.get(k)!r} here"
            for k in compared
            if old.get(k) != new.get(k) and k != "model.backend"  # another form of the same functions
        ]
        if differences:
            raise CheckpointError(
                f"the checkpoint belongs to other settings: {'; '.join(differences)}. "
                "Leave them out, or start a new run without --ckpt_path."
            )

    def _parse_ckpt_path(self) -> None:
        """Nothing: the whole configuration is taken from the checkpoint, not the model's part alone."""

    # --- before and after the classes are made

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        data = config.data.init_args
        data.root = str(Path(data.root).expanduser().absolute())
        if data.get("store"):
            data.store = str(Path(data.store).expanduser().absolute())
        if self.subcommand == "prepare":
            return
        if config.run_folder is not None and (self.subcommand != "fit" or self.folder is not None):
            raise UserError(
                "run_folder names the folder of a new run: leave it out beside --ckpt_path last, and for all but fit."
            )
        if config.record_samples < 0:
            raise UserError(f"record_samples must be at least 0, got {config.record_samples}.")
        precision = str(config.trainer.precision)
        if precision in ("16", "16-mixed", "16-true") and self._accelerator(config) == "cpu":
            raise UserError(f"--trainer.precision {precision} needs a GPU: on a CPU pass bf16-mixed or 32-true.")
        if config.trainer.overfit_batches:
            raise UserError("trainer.overfit_batches would replace the data's order: pass limit_train_batches instead.")
        if self.subcommand == "fit":
            for logger in self._loggers(config):
                if logger.class_path.endswith(".RunLogger") and logger.init_args.name is None:
                    logger.init_args.name = self._run_name(config)

    @staticmethod
    def _loggers(config: Any) -> list[Any]:
        loggers = config.trainer.logger
        loggers = loggers if isinstance(loggers, list) else [loggers]
        return [logger for logger in loggers if hasattr(logger, "class_path")]

    @staticmethod
    def _accelerator(config: Any) -> str:
        name = config.trainer.accelerator
        if name in ("auto", "gpu"):
            return "gpu" if CUDAAccelerator.is_available() or MPSAccelerator.is_available() else "cpu"
        return str(name)

    @staticmethod
    def _run_name(config: Any) -> str:
        """Name of the first configuration file that is no variant, or of the data set."""
        paths = [Path(str(path)) for path in config.get("config") or [] if path is not None and str(path)]
        for path in paths:
            if path.suffix in (".yaml", ".yml") and path.resolve().parent != CONFIGS / "variants":
                return path.stem
        return str(config.data.class_path).rsplit(".", 1)[-1].lower()

    def instantiate_classes(self) -> None:
        # `prepare` trains nothing: its network takes no memory.
        with torch.device("meta") if self.subcommand == "prepare" else nullcontext():
            super().instantiate_classes()

    def prepare(self, model: L.LightningModule, datamodule: SpikingDataModule, verify: bool) -> None:
        """Does what the data needs before the first run, and says what is there."""
        datamodule.prepare_data()
        print_inventory(datamodule, datamodule.verify() if verify else None)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        if self.subcommand == "prepare":
            # Whatever devices the configuration asks for: they may be elsewhere than the data.
            return _Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False)
        config = self.config_init[self.subcommand].trainer
        weights = WeightRecord()
        own: list[Any] = [SameData(self.training_set), LayerMonitor(), CurvePlots(), ConfusionMatrix()]
        if self.subcommand == "fit":
            own += [
                Header(),
                CommandRecord(self.arguments),
                weights,
                SampleRecord(self.config[self.subcommand].record_samples),
            ]
        if self.subcommand == "predict":
            own.append(PredictionWriter())
        if config.enable_checkpointing is not False and config.limit_val_batches != 0 and self.subcommand == "fit":
            own.append(BestCheckpoint())
        self.trainer_defaults = {"callbacks": own}
        trainer = super().instantiate_trainer(**kwargs)
        if "sync_batchnorm" not in kwargs and not config.sync_batchnorm and needs_sync_batchnorm(trainer):
            _log.info("sync_batchnorm is on: BN statistics are taken over all GPUs.")
            return self.instantiate_trainer(sync_batchnorm=True)
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger) and self.folder is not None:
                if self.subcommand == "fit":
                    logger.place(self.folder.path, keep_before_step=self.resume_step)
                else:
                    logger.place(self.folder.path / str(self.subcommand))
            elif isinstance(logger, WandbRunLogger) and self.folder is not None and self.subcommand == "fit":
                logger.take_up(self.folder)
            elif isinstance(logger, RunLogger) and self.config[self.subcommand].run_folder is not None:
                logger.place(Path(self.config[self.subcommand].run_folder).absolute())
        if any(isinstance(logger, WandbRunLogger) for logger in trainer.loggers):
            trainer.callbacks.append(WandbRecord(weights))  # type: ignore[attr-defined]  # after those that write what it reads
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> L.Trainer:
        if config.get("enable_checkpointing") is False:
            callbacks = [c for c in callbacks if not isinstance(c, Checkpoint)]
        if config.get("enable_progress_bar") is False and isinstance(config.get("callbacks"), list):
            config["callbacks"] = [c for c in config["callbacks"] if not isinstance(c, ProgressBar)]
        return super()._instantiate_trainer(config, callbacks)

    def before_fit(self) -> None:
        for logger in self.trainer.loggers:
            if isinstance(logger, RunLogger) and self.folder is None and self.trainer.is_global_zero:
                folder = RunFolder(Path(logger.log_dir))
                if folder.config.exists():
                    raise UserError(
                        f"{folder.path} already holds a run. To go on with it, pass --config {folder.config} "
                        "--ckpt_path last; for a new run leave out --trainer.logger.version."
                    )

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand != "prepare":
            kwargs["weights_only"] = True
        if subcommand in ("validate", "test"):
            kwargs["verbose"] = False
        if subcommand == "predict":
            kwargs["return_predictions"] = False
        return kwargs

    # --- what a run says at its end

    def after_fit(self) -> None:
        results = None
        test = self.config[self.subcommand].test_after_fit and not is_trial(self.trainer)
        if test:
            best = best_checkpoint(self.trainer)
            path = best.best_model_path if best is not None else ""
            if path:
                measured = self.trainer.test(
                    self.model, datamodule=self.datamodule, ckpt_path=path, verbose=False, weights_only=True
                )
                results = measured[0] if measured else None
        if self.trainer.is_global_zero:
            if not is_trial(self.trainer):
                write_result(run_folder(self.trainer), results, self.datamodule.sizes())
            print_fit(self.trainer, self.datamodule, results, asked_for_test=test)

    def after_validate(self) -> None:
        print_evaluation(self.trainer, self.datamodule)

    def after_test(self) -> None:
        folder, limit = self.folder, self.config[self.subcommand].trainer.limit_test_batches
        if folder is not None and self.trainer.is_global_zero and not is_trial(self.trainer):
            # The run's accuracy B is that of its best checkpoint on all of the test set.
            checkpoint = Path(str(self.config[self.subcommand].ckpt_path)).resolve()
            # Lightning takes 1 for one batch and 1.0 for all of them.
            whole = limit is None or (isinstance(limit, float) and limit == 1.0)
            if whole and checkpoint == folder.best.resolve():
                write_test_result(folder, self.trainer.callback_metrics, self.datamodule.sizes())
        print_evaluation(self.trainer, self.datamodule)

    def after_predict(self) -> None:
        print_evaluation(self.trainer, self.datamodule)


class Header(Callback):
    """Says at the start of a fit what is trained, on what, how it is measured, and where it goes."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, SpikingClassifier)
        if trainer.is_global_zero:
            data: SpikingDataModule = trainer.datamodule  # type: ignore[attr-defined]
            print_header(trainer, pl_module.network, data)
            _log.info(data.describe())
            if not is_trial(trainer):
                facts = {"data": data.title, "origin": data.origin_note, "samples": data.sizes()}
                with written_whole(run_folder(trainer).data) as file:
                    json.dump({**facts, "protocol": data.protocol}, file, indent=2)


def needs_sync_batchnorm(trainer: L.Trainer) -> bool:
    """Whether several GPUs train together, each on a part of the batch whose statistics BN is meant to take."""
    return trainer.world_size > 1 and isinstance(trainer.accelerator, CUDAAccelerator)


# Of what Lightning says at every start or checkpoint, what tells a user nothing.
_NOISE = (
    "💡 Tip",
    "`weights_only` was not set",
    "TPU available",
    "GPU available: False",
    "Restoring states",
    "Loaded model weights",
    "`Trainer.fit` stopped",
)


def _tells_something(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOISE)


def _quieten() -> None:
    for handler in logging.getLogger("lightning").handlers + logging.getLogger("lightning.pytorch").handlers:
        handler.addFilter(_tells_something)
    # lightning 2.6 calls what torch 2.13 deprecates
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    # Images lie in memory and are cut into batches at once: worker processes would only slow them down.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # An evaluation has nothing to do with the callbacks that watched the training.
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")
    # A resumed run goes on in its own folder; a new one never gets an old folder.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # All metrics are logged once an epoch.
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")


def _raised_by_lightning(error: Exception) -> bool:
    """Whether Lightning itself, and nothing that it called, refused something that a user asked for."""
    trace = traceback.extract_tb(error.__traceback__)
    return bool(trace) and Path(L.__file__).parent in Path(trace[-1].filename).parents


def main(args: list[str] | None = None) -> None:
    """Runs the command line; a user's mistake ends it with one sentence and exit status 2."""
    _quieten()
    try:
        PlifCLI(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        own: str | Exception | None = error if isinstance(error, MisconfigurationException) else _own_error(error)
        if own is None and isinstance(error, OSError) and error.filename is not None:
            own = f"{error.filename}: {error.strerror}."  # no permission, no space, no such folder
        if own is None and isinstance(error, (ValueError, RuntimeError)) and _raised_by_lightning(error):
            own = " ".join(str(error).split())
        if own is None:
            raise
        # PyTorch puts a loader worker's traceback into the message.
        text = str(own).strip().split("\n")[-1].split("Error: ", 1)[-1] if "Original Traceback" in str(own) else own
        print(f"error: {text}", file=sys.stderr)
        raise SystemExit(2) from None
