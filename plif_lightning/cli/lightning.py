"""LightningCLI for this project: ties data, task, checkpoints and run folders together."""

import logging
import os
import signal
import time
import warnings
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import lightning as L
import yaml
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins import LayerSync, TorchSyncBatchNorm
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from plif_lightning import configs
from plif_lightning.callbacks import (
    ConfusionMatrix,
    LayerMonitor,
    PredictionWriter,
    RunLogger,
    RunRecord,
    SampleRecord,
    WandbRunLogger,
    WeightRecord,
    slurm,
)
from plif_lightning.callbacks.checkpoints import CheckpointFiles
from plif_lightning.callbacks.config import SaveConfig
from plif_lightning.callbacks.engine import DeployedForm
from plif_lightning.callbacks.logger import RUNS, is_fast_dev_run, new_folder, run_folder
from plif_lightning.callbacks.records import content_of
from plif_lightning.callbacks.same_data import SameData
from plif_lightning.callbacks.stopping import StopOnSignal
from plif_lightning.cli.compare import compare, require_length
from plif_lightning.cli.messages import Parser, refuse_silent, user_error_of
from plif_lightning.cli.options import add_options
from plif_lightning.cli.parser import option_names
from plif_lightning.cli.start import Start, origin_of, origin_of_last, read_config, require_data_set, task_in
from plif_lightning.cli.summary import Header, print_evaluation, print_fit
from plif_lightning.data import SpikingDataModule
from plif_lightning.errors import Stopped, UserError
from plif_lightning.network.network import DEFAULTS
from plif_lightning.network.storage.checkpoint import load_checkpoint
from plif_lightning.network.user_networks import import_class
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.lock import in_use, lock_run, remove_empty
from plif_lightning.runs.record import read_record, update
from plif_lightning.runtime.files import is_address
from plif_lightning.runtime.process import ignore_loaders_end, on_termination, subnormals_as_zeros
from plif_lightning.structure import FROM_DATA
from plif_lightning.training.schedules import require_upwards
from plif_lightning.training.task import SpikingClassifier

_log = logging.getLogger(__name__)


class PlifCLI(LightningCLI):
    """LightningCLI with `configs/base.yaml` under every configuration, and in checkpoints.

    Of its private methods it overrides one, `_parse_ckpt_path`, which would put the hyper-parameters of a checkpoint
    over the arguments of the command line; all else is done in the methods that Lightning documents for it.
    """

    def __init__(self, start: Start, resources: ExitStack, stop: StopOnSignal) -> None:
        self.start = start
        self.origin = start.origin  # of the checkpoint that is resumed or evaluated
        self.resources = resources  # until the program's end
        self.plain: dict[str, Any] = {}  # configuration as plain values
        self.differing_settings: list[str] = []  # settings of an evaluation that are not the run's
        self.counts = False  # a test is the run's result, as far as its arguments tell
        self.stop = stop
        base, task = str(configs.folder() / "base.yaml"), task_in(start.arguments)
        super().__init__(
            import_class("model", task, SpikingClassifier, "plif_lightning.SpikingClassifier")
            if task
            else SpikingClassifier,
            SpikingDataModule,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            seed_everything_default=2020,
            parser_class=Parser,
            parser_kwargs={name: {"default_config_files": [base]} for name in self.subcommands()},
            auto_configure_optimizers=False,
            args=start.arguments,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the command that is called: building all parsers would take the time of all."""
        command = self.start.command
        return {command: LightningCLI.subcommands()[command]}

    def __deepcopy__(self, memo: dict[int, Any]) -> "PlifCLI":
        # The task holds the optimiser's recipe, which jsonargparse ties to this object, which holds the Trainer
        # and the data: copying the task, as weight averaging does, must not copy these.
        return self

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        cast(Parser, parser).parse_integers_first()
        self.run_parser = parser
        add_options(parser)
        for name in FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
            # A user-defined network gets it where its class has such an argument.
            parser.link_arguments(f"data.{name}", f"model.network.init_args.{name}", apply_on="instantiate")

    # --- checkpoints and the configurations in them

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        self.config = parser.parse_args(args)
        command = self.config.subcommand
        config = self.config[command]
        refuse_silent(config, command, option_names(self.start.user_arguments))
        if config.model.network is not None:
            # A user-defined network replaces the network of a data set's configuration.
            config.model.structure = None
            config.model.dropout = DEFAULTS["dropout"]
        make_paths_absolute(config.data.init_args)
        self.plain = yaml.safe_load(parser.dump(self.config, skip_none=False, format="yaml"))[command]
        folder = self.start.folder
        if command == "fit" and folder is None:
            for name, is_argument in (("ckpt_path", self.start.begun_from), ("run_folder", self.start.is_named)):
                if config.get(name) is not None and not is_argument:
                    raise UserError(f"{name} stands in a configuration file: pass it as --{name} instead.")
            if self.start.begun_from is not None:
                require_length(Path(self.start.begun_from), self.plain)
            return
        if command == "fit" and folder is not None:
            writes = is_first_process() and not config.trainer.fast_dev_run
            if writes:  # locked until the program's end, before anything of the run is read
                self.resources.enter_context(lock_run(folder))
            self.origin = origin_of_last(folder) if writes else origin_of(folder.last)
        self.differing_settings = compare(self.start, self.origin, self.plain)

    def _parse_ckpt_path(self) -> None:
        """Do nothing, instead of merging the checkpoint's hyper_parameters: `start_of` and `compare` do more."""

    # --- before and after the classes are made

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        for name, value in (("weights_only", True), ("verbose", False), ("return_predictions", False)):
            if name in config:  # of Trainer.fit, .test or .predict
                config[name] = value
        # Lightning writes values from the data into these hyper-parameters, and expects a key for them: a
        # user-defined network that is not there, or that takes no arguments, has none.
        dump = self.parser.dump(self.config, skip_link_targets=False, skip_none=False, format="yaml")
        self.config_dump = yaml.safe_load(dump)[self.subcommand]
        model = self.config_dump["model"]
        model["network"] = {"init_args": {}, **(model.get("network") or {})}

    @cached_property
    def output_folder(self) -> Path:
        """The folder of a run or an evaluation; that of a new run is created, and removed if the run never starts."""
        config, folder = self.config[self.subcommand], self.start.folder
        if self.subcommand != "fit":
            name = str(self.subcommand) if config.engine is None else f"{self.subcommand}_{config.engine}"
            is_other = folder is not None and self._is_other(folder, name)
            its_folder = RunFolder.of_checkpoint(Path(str(config.ckpt_path)))
            return its_folder.evaluation(f"{name}_other" if is_other else name).path
        if folder is not None or config.run_folder is not None:
            return Path(config.run_folder).absolute()
        root = Path(config.trainer.default_root_dir or "").absolute() / RUNS / self._run_name(config)
        if config.trainer.fast_dev_run or not is_first_process():
            return root  # of no use: the first process has the folder
        new_run = new_folder(root)
        for created in (root.parent, root, new_run):  # removed in reverse order
            self.resources.callback(remove_empty, created)
        return new_run

    @staticmethod
    def _run_name(config: Any) -> str:
        """Name of the first configuration file that is no variant, recipe or network, or of the data set."""
        beside = [configs.folder() / kind for kind in ("variants", "recipes", "networks")]
        paths = [Path(str(path)) for path in config.get("config") or [] if path is not None and str(path)]
        for path in paths:
            if path.suffix in (".yaml", ".yml") and path.resolve().parent not in beside:
                return path.stem
        return str(config.data.class_path).rsplit(".", 1)[-1].lower()

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        options, config = self.config_init[self.subcommand], self.config_init[self.subcommand].trainer
        options.checkpoint.ties = options.best_of_ties
        if config.enable_checkpointing is False:
            self.run_parser.callback_keys = []
        for callback in _as_list(config.callbacks):
            require_upwards(callback)
        self.trainer_defaults = {"callbacks": self._project_callbacks(config)}
        plugins = _as_list(config.plugins)
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(CheckpointFiles())
        if not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
            plugins += filter(None, [slurm.environment()])
        if not config.sync_batchnorm and not any(isinstance(plugin, LayerSync) for plugin in plugins):
            plugins.append(SyncOnGPUs())
        loggers = [logger for logger in _as_list(config.logger) if isinstance(logger, Logger)]
        for logger in loggers:
            if isinstance(logger, WandbRunLogger) and self.subcommand == "fit":
                logger.set_run_folder(RunFolder(self.output_folder))
        first_step = self.origin.step if self.subcommand == "fit" else 0
        return super().instantiate_trainer(
            callbacks=_as_list(config.callbacks),
            plugins=plugins,
            logger=[RunLogger(self.output_folder, first_step), *loggers],
            # On SLURM, Lightning takes the newest hpc_ckpt_N.ckpt that lies here, whichever run's it is.
            default_root_dir=os.fspath(self.output_folder),
            **kwargs,
        )

    def _project_callbacks(self, config: Any) -> list[Callback]:
        """Callbacks that this project adds to the Trainer's."""
        options = self.config[self.subcommand]
        added: list[Callback] = [
            SameData(self.origin.training_set, self.origin.reading),
            LayerMonitor(),
            ConfusionMatrix(),
        ]
        if self.subcommand == "fit":
            record = RunRecord(self.start.user_arguments, self.plain, self.start.begun_from)
            added += [Header(record), record, WeightRecord(), SampleRecord(options.record_samples), self.stop]
        if self.subcommand == "predict":
            added.append(PredictionWriter())
        if options.engine is not None:
            added.append(DeployedForm(options.engine))
        user_callbacks = _as_list(config.callbacks)
        if config.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in user_callbacks):
            added.append(RichProgressBar(leave=True))
        return added

    def before_fit(self) -> None:
        self.stop.after_step = self.config[self.subcommand].stop_after_step
        self.resources.enter_context(self.stop.watching(self.trainer))
        if self.trainer.is_global_zero and not is_fast_dev_run(self.trainer):
            (logger,) = (logged for logged in self.trainer.loggers if isinstance(logged, RunLogger))
            if self.start.folder is None:  # a new run; a resumed one is locked already
                self.resources.enter_context(lock_run(RunFolder(Path(logger.save_dir))))
            _ = logger.table  # damage is reported now, not after the first epoch

    # --- the end of a run

    def after_fit(self) -> None:
        metrics = None
        test = self.config[self.subcommand].test_after_fit and not is_fast_dev_run(self.trainer)
        folder = run_folder(self.trainer)
        if test and folder.best.is_file():
            # Not by ckpt_path: where weights are averaged, Lightning's callback would put the plain weights
            # back in place of them.
            self.model.load_state_dict(load_checkpoint(folder.best)["state_dict"])
            measured = self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
            metrics = measured[0] if measured else None
        if self.trainer.is_global_zero:
            if not is_fast_dev_run(self.trainer):
                tested = {} if metrics is None else {"test": metrics["test/acc"]}
                of_data = replace(read_record(folder).data, samples=self.datamodule.sizes())
                update(folder, ended=time.time(), data=of_data, **tested)
            print_fit(self.trainer, self.datamodule, metrics, asked_for_test=test)

    def after_validate(self) -> None:
        print_evaluation(self.trainer, self.datamodule)

    def after_test(self) -> None:
        folder = self.start.folder
        if folder is not None and self.trainer.is_global_zero and self.counts:
            tested = self.datamodule.sizes().get("test")
            update(folder, test=float(self.trainer.callback_metrics["test/acc"]), tested=tested)
        if self.differing_settings:
            _log.warning(
                "With another %s than in training, this is no result of the run.", ", ".join(self.differing_settings)
            )
        print_evaluation(self.trainer, self.datamodule)

    def _is_other(self, folder: RunFolder, name: str) -> bool:
        """True if a test or prediction is of other data or settings than those of the run in a folder."""
        self.counts = self._counts(folder)
        if self.subcommand == "predict":
            return bool(self.differing_settings) or self._has_another_test_set(folder)
        return name == "test" and not self.counts

    def _counts(self, folder: RunFolder) -> bool:
        """True if a test gives the accuracy B of the run in a folder.

        That is of its best checkpoint on all of its test set, measured as in training.
        """
        config = self.config[self.subcommand]
        tests_best = Path(str(config.ckpt_path)).resolve() == folder.best.resolve()
        if self.differing_settings or config.engine is not None or not tests_best:
            return False
        if is_first_process() and in_use(folder):
            _log.warning("The run is still in training, and its best checkpoint may change: no result is kept.")
            return False
        if self.subcommand != "test":
            return False
        if self._has_another_test_set(folder):
            self.differing_settings.append("test set")
        return not self.differing_settings

    def _has_another_test_set(self, folder: RunFolder) -> bool:
        """True if the test set is not that which the run in a folder was begun with."""
        self.datamodule.prepare_data()
        return read_record(folder).data.test_content != content_of(self.datamodule, train=False)

    def after_predict(self) -> None:
        print_evaluation(self.trainer, self.datamodule)


def is_first_process() -> bool:
    """True in the process of rank 0, known before there is a Trainer."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _as_list(values: Any) -> list[Any]:
    """The values of an argument that takes any number of them."""
    return [*values] if isinstance(values, (list, tuple)) else [] if values is None else [values]


def make_paths_absolute(data: Any) -> None:
    """Make the folders among a data set's arguments absolute: a run may be resumed from another folder."""
    for name in ("root", "store"):
        if data.get(name) and not is_address(str(data[name])):
            data[name] = str(Path(data[name]).expanduser().absolute())


class SyncOnGPUs(TorchSyncBatchNorm):
    """Lets the statistics of BN cover all parts of a batch where several GPUs train together, not on CPUs."""

    is_applied = False

    def apply(self, model: Any) -> Any:
        trainer = model.trainer
        self.is_applied = trainer.world_size > 1 and isinstance(trainer.accelerator, CUDAAccelerator)
        if self.is_applied:
            rank_zero_info("sync_batchnorm is on: BN statistics are taken over all GPUs.")
        return super().apply(model) if self.is_applied else model

    def revert(self, model: Any) -> Any:
        return super().revert(model) if self.is_applied else model


# Messages of Lightning at every start or checkpoint that tell a user nothing.
_NOISE = (
    "💡 Tip",
    "`weights_only` was not set",
    "TPU available",
    "GPU available: False",
    "Restoring states",
    "Restored all states",
    "Found current_model_state",
    "Loaded model weights",
    "`Trainer.fit` stopped",
)


def _tells_something(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    # The test after a fit adds the task's callbacks again.
    return not text.startswith(_NOISE) and not text.endswith("callbacks passed to Trainer: FiniteGuard, StepSeeds")


def quieten() -> None:
    for handler in logging.getLogger("lightning").handlers + logging.getLogger("lightning.pytorch").handlers:
        handler.addFilter(_tells_something)
    # lightning 2.6 calls functions that torch 2.13 deprecates
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    # Of DDP: the strides of a weight with a single input channel are ambiguous, and its gradient has others. All else
    # agrees.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # Images lie in memory and are cut into batches at once: worker processes would only slow them down.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # An evaluation does not need the callbacks of the training.
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")
    # A resumed run keeps its folder; new runs never get an old folder.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # All metrics are logged once an epoch.
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")


@subnormals_as_zeros()
def run(start: Start) -> int:
    """Train or evaluate.

    Raises:
        UserError: a mistake that this project refuses; other errors are raised as they are.
    """
    quieten()
    if start.config is not None:
        require_data_set(read_config(str(start.config)).get("data", {}))
    stop = StopOnSignal(requeues=start.is_named)
    try:
        with on_termination(stop.terminate), ExitStack() as resources:
            PlifCLI(start, resources, stop)
    except SIGTERMException:
        return 128 + signal.SIGTERM
    except (SystemExit, KeyboardInterrupt) as ended:
        # Lightning ends an interrupted fit with status 1.
        if isinstance(ended, KeyboardInterrupt) or isinstance(ended.__context__, KeyboardInterrupt):
            stop.say_if_trained()
            if stop.terminated is not None:
                before = " before training began" if start.command == "fit" else ""
                raise Stopped(128 + stop.terminated, f"stopped by {stop.terminated.name}{before}.") from None
            raise KeyboardInterrupt from None
        raise
    except Exception as error:
        ignore_loaders_end()
        if (user_error := user_error_of(error)) is not None:
            raise user_error from error
        if stop.resumption:
            error.add_note(stop.resumption)  # the last line of the traceback
        raise
    return 0
