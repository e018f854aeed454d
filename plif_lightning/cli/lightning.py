"""LightningCLI for this project: ties data, task, checkpoints and run folders together."""

import logging
import os
import shlex
import signal
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from plif_lightning import configs
from plif_lightning.callbacks import (
    BestCheckpoint,
    CommandRecord,
    ConfusionMatrix,
    CurvePlots,
    LastCheckpoint,
    LayerMonitor,
    PredictionWriter,
    RunLogger,
    SampleRecord,
    WandbRecord,
    WandbRunLogger,
    WeightRecord,
)
from plif_lightning.callbacks.checkpoints import CheckpointFiles, Ties, best_checkpoint
from plif_lightning.callbacks.config import SaveConfig
from plif_lightning.callbacks.engine import DeployedForm
from plif_lightning.callbacks.logger import RUNS, is_trial, run_folder
from plif_lightning.callbacks.records import content_of
from plif_lightning.callbacks.same_data import SameData
from plif_lightning.callbacks.stopping import StopOnSignal
from plif_lightning.cli.checkpoint import Expanded, refuse_other_settings, refuse_shorter
from plif_lightning.cli.messages import Parser, own_error, refuse_silent
from plif_lightning.cli.parser import option_names
from plif_lightning.cli.summary import Header, print_evaluation, print_fit
from plif_lightning.data import SpikingDataModule
from plif_lightning.deploy import Engine
from plif_lightning.errors import CheckpointError, Stopped, UserError
from plif_lightning.network.checkpoint import load_checkpoint
from plif_lightning.network.network import DEFAULTS
from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.process import in_use, locked, remove_empty
from plif_lightning.runs.reading import read_run
from plif_lightning.runs.result import write_result, write_test_result
from plif_lightning.runs.run import Run
from plif_lightning.runs.settings import changed, is_part, key_of, only_longer
from plif_lightning.runtime.files import is_address
from plif_lightning.runtime.process import ignore_loaders_end, on_termination
from plif_lightning.structure import FROM_DATA
from plif_lightning.training.task import SpikingClassifier

_log = logging.getLogger(__name__)

# Classes that watch a metric and take the lowest value for the best unless they are told otherwise.
_WATCHERS = ("EarlyStopping", "ModelCheckpoint", "ReduceLROnPlateau")


class PlifCLI(LightningCLI):
    """LightningCLI with `configs/base.yaml` under every configuration, and checkpoints that hold their own."""

    def __init__(self, expanded: Expanded, held: ExitStack, stop: StopOnSignal) -> None:
        self.expanded = expanded
        self.held = held  # until the program's end
        self.place: Path | None = None  # of a new run
        self.changed: dict[str, Any] = {}  # since the checkpoint
        self.longer: dict[str, Any] = {}
        self.stop = stop
        base = str(configs.folder() / "base.yaml")
        super().__init__(
            SpikingClassifier,
            SpikingDataModule,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            seed_everything_default=2020,
            parser_class=Parser,
            parser_kwargs={name: {"default_config_files": [base]} for name in self.subcommands()},
            auto_configure_optimizers=False,
            args=expanded.arguments,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the command that is called: building all parsers would take the time of all."""
        command = self.expanded.arguments[0]
        return {command: LightningCLI.subcommands()[command]}

    def __deepcopy__(self, memo: dict[int, Any]) -> "PlifCLI":
        # jsonargparse ties the optimiser's recipe, which the task holds, to this object, and this one holds the Trainer
        # and the data: copying the task, as weight averaging does, must not copy those.
        return self

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        cast(Parser, parser).whole_numbers_first()
        parser.add_lightning_class_args(LastCheckpoint, "checkpoint")
        parser.add_argument(
            "--run_folder",
            type=str | None,
            default=None,
            help="Folder of a fit's files, instead of runs/NAME/version_N. --resume auto resumes the run there.",
        )
        parser.add_argument(
            "--record_samples",
            type=int,
            default=10,
            help="Samples, one per class, whose spikes in the best network are recorded when a fit ends.",
        )
        parser.add_argument(
            "--test_after_fit", type=bool, default=False, help="Test the best checkpoint once, right after fit."
        )
        parser.add_argument(
            "--best_of_ties",
            type=Ties | None,
            default=None,
            help="Which of several epochs with the same validation accuracy is the best one (null: the last where a "
            "held-out part validates, as in the authors' code; the first on the test set).",
        )
        parser.add_argument(
            "--engine",
            type=Engine | None,
            default=None,
            help="predict and test: form of the BN-folded network on a CPU; auto takes the fastest.",
        )
        for name in FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
            # A network of one's own gets it where its class has such an argument.
            parser.link_arguments(f"data.{name}", f"model.network.init_args.{name}", apply_on="instantiate")

    def _dump_config(self) -> None:
        super()._dump_config()
        # Lightning writes what the data determine into the hyper-parameters, and expects a place for it: a network of
        # one's own that is not there, or that takes no arguments, has none.
        model = self.config_dump.get("model")
        if isinstance(model, dict):
            model["network"] = {"init_args": {}, **(model.get("network") or {})}

    # --- checkpoints and the configurations in them

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        assert isinstance(args, list)
        self.config = parser.parse_args(args)
        command = self.config.subcommand
        refuse_silent(self.config[command], command, option_names(self.expanded.given))
        if self.config[command].model.network is not None:
            # A network of one's own takes the place of the one that a data set's configuration describes.
            self.config[command].model.structure = None
            self.config[command].model.dropout = DEFAULTS["dropout"]
        stored = self.expanded.stored.config
        if stored is not None:
            if command == "fit" and self.config[command].best_of_ties is None:
                self.config[command].best_of_ties = stored.get("best_of_ties")  # a run keeps its rule
            given = yaml.safe_load(parser.dump(self.config, skip_none=False, format="yaml"))
            refuse_other_settings(self.expanded, given[command])
            for name, value in changed(stored, given[command]).items():
                (self.longer if only_longer(name, given[command]) else self.changed)[name] = value
            if command == "fit" and self.expanded.folder is not None:
                refuse_shorter(self.expanded, given[command]["trainer"])
            if self.expanded.resumes:
                end_if_finished(self.expanded, given[command])
        elif self.config[command].get("ckpt_path") is not None:
            raise CheckpointError("ckpt_path stands in a configuration file: pass it as --ckpt_path instead.")

    def _parse_ckpt_path(self) -> None:
        """Do nothing, instead of merging the checkpoint's hyper_parameters.

        `expand` has put the stored settings of an evaluation first; a resumed fit is only compared with them.
        """

    # --- before and after the classes are made

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        place_absolutely(config.data.init_args)
        folder = self.expanded.folder
        if self.subcommand == "fit":
            self._keep_own_logger(config, new=folder is None and not config.trainer.fast_dev_run)
            callbacks = config.trainer.callbacks if isinstance(config.trainer.callbacks, list) else []
            for watcher in (*callbacks, config.model.lr_scheduler):
                # By the classes' own default a run that improves would be stopped, its worst epoch kept, its learning
                # rate cut.
                if str(watcher and watcher.get("class_path")).endswith(_WATCHERS):
                    arguments = watcher.get("init_args")
                    if "acc" in str(arguments.get("monitor")):
                        arguments.mode = "max"

    def _keep_own_logger(self, config: Any, new: bool) -> None:
        """Put the run's own logger first, whose folder Lightning takes for the run's; leave others as they are.

        Args:
            config: of the command.
            new: the run is a new one and gets a folder of its own.
        """
        given = config.trainer.logger if isinstance(config.trainer.logger, list) else [config.trainer.logger]
        loggers = [one for one in given if hasattr(one, "class_path")]
        own = next((one for one in loggers if one.class_path.endswith(".RunLogger")), None)
        if own is None:
            arguments = Namespace(save_dir=RUNS, name=None, version=None)
            own = Namespace(class_path=f"{RunLogger.__module__}.{RunLogger.__name__}", init_args=arguments)
        if own.init_args.name is None:
            own.init_args.name = self._run_name(config)
        if config.trainer.default_root_dir is not None and own.init_args.save_dir == RUNS:
            own.init_args.save_dir = str(Path(config.trainer.default_root_dir) / RUNS)
        folder = self._claim(config, RunLogger(*(own.init_args[name] for name in ("save_dir", "name", "version"))), new)
        others = [one for one in loggers if one is not own]
        for other in others:
            if other.init_args.get("save_dir") == RUNS:  # W&B's default; for another class left over from base.yaml's
                of_wandb = other.class_path.endswith(".WandbRunLogger")
                other.init_args.save_dir = str((Path(RUNS) if of_wandb else folder).absolute())
        config.trainer.logger = [own, *others] if others else own

    def _claim(self, config: Any, logger: RunLogger, new: bool) -> Path:
        """The run's folder; that of a new run is created, and removed again if the run never starts."""
        if config.run_folder is not None:
            self.place = Path(config.run_folder).absolute()
        elif new and getattr(rank_zero_only, "rank", 0) == 0:
            self.place = logger.claim()
            for made in (self.place.parent.parent, self.place.parent, self.place):  # removed in reverse order
                self.held.callback(remove_empty, made)
        if self.place is not None:
            return self.place
        return Path(logger.log_dir) if self.expanded.folder is None else self.expanded.folder.path

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
        config = self.config_init[self.subcommand].trainer
        self.trainer_defaults = {"callbacks": self._own_callbacks(config)}
        trainer = super().instantiate_trainer(**kwargs)
        launcher = trainer.strategy.launcher
        if launcher is not None and launcher.__class__.__name__ == "_MultiProcessingLauncher":
            raise UserError(
                f"trainer.strategy {config.strategy} starts processes that cannot hand a run back: pass ddp, or leave "
                "it out."
            )
        if "sync_batchnorm" not in kwargs and not config.sync_batchnorm and needs_sync_batchnorm(trainer):
            _log.info("sync_batchnorm is on: BN statistics are taken over all GPUs.")
            return self.instantiate_trainer(sync_batchnorm=True)
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                self._place(logger)
                # On SLURM, Lightning takes the newest hpc_ckpt_N.ckpt that lies here, whichever run's it is.
                trainer._default_root_dir = logger.log_dir  # type: ignore[attr-defined]
            elif isinstance(logger, WandbRunLogger):
                if self.expanded.folder is not None and self.subcommand == "fit":
                    logger.resume(self.expanded.folder)
                # Last: after the callback that writes what it reads.
                trainer.callbacks.append(WandbRecord())  # type: ignore[attr-defined]
        return trainer

    def _own_callbacks(self, config: Any) -> list[Callback]:
        """Callbacks that this project adds to the Trainer's."""
        options = self.config[self.subcommand]
        own: list[Callback] = [
            SameData(self.expanded.stored.training_set, self.expanded.stored.reading),
            LayerMonitor(),
            CurvePlots(),
            ConfusionMatrix(),
        ]
        if self.subcommand == "fit":
            record = CommandRecord(self.expanded.given, self.changed, self.longer)
            own += [
                Header(record),
                record,
                WeightRecord(),
                SampleRecord(options.record_samples),
                self.stop,
            ]
        if self.subcommand == "predict":
            own.append(PredictionWriter())
        if options.engine is not None:
            own.append(DeployedForm(options.engine))
        given = config.callbacks if isinstance(config.callbacks, list) else [config.callbacks]
        if config.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in given):
            own.append(RichProgressBar(leave=True))
        if config.enable_checkpointing is not False and config.limit_val_batches != 0 and self.subcommand == "fit":
            own.append(BestCheckpoint(options.best_of_ties))
        return own

    def _place(self, logger: RunLogger) -> None:
        """Give the run's logger its folder: of a resumed or a new run, or of an evaluation beside a checkpoint."""
        folder = self.expanded.folder
        if folder is None:
            if self.place is not None:
                logger.place(self.place)
        elif self.subcommand == "fit":
            logger.place(folder.path, keep_before_step=self.expanded.stored.step)
        else:
            engine = self.config[self.subcommand].engine
            name = str(self.subcommand) if engine is None else f"{self.subcommand}_{engine}"
            if name == "test" and folder.config.exists() and not self._tests_best_as_in_training(folder):
                name = "test_other"  # beside `test`, which holds the run's result
            logger.place(evaluation_folder(folder, name).path)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> L.Trainer:
        if config.get("enable_checkpointing") is False:
            callbacks = [c for c in callbacks if not isinstance(c, Checkpoint)]
        given = config.get("plugins") or []
        plugins = list(given) if isinstance(given, (list, tuple)) else [given]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(CheckpointFiles())
        named = any(isinstance(plugin, ClusterEnvironment) for plugin in plugins)
        if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect() and not named:
            plugins.append(SLURMEnvironment(auto_requeue=False))  # StopOnSignal does that
        config = {**config, "plugins": plugins}
        return super()._instantiate_trainer(config, callbacks)

    def before_fit(self) -> None:
        self.held.enter_context(self.stop.watching(self.trainer))
        for logger in self.trainer.loggers:
            if isinstance(logger, RunLogger) and self.trainer.is_global_zero:
                folder = RunFolder(Path(logger.log_dir))
                self.held.enter_context(locked(folder))
                if folder.config.exists() and self.expanded.folder is None and not self.expanded.resumes:
                    resume = f"--config {shlex.quote(str(folder.config))} --ckpt_path last"
                    resume = f"to resume it, pass {resume}" if folder.last.is_file() else "it saved no checkpoint"
                    given = self.config[self.subcommand].run_folder is not None
                    other = "name another --run_folder" if given else "leave out --trainer.logger.version"
                    raise UserError(f"{folder.path} already holds a run: {resume}; for a new run {other}.")
                _ = logger.experiment  # a damaged table is told now, not after the first epoch

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["weights_only"] = True
        if subcommand in ("validate", "test"):
            kwargs["verbose"] = False
        if subcommand == "predict":
            kwargs["return_predictions"] = False
        return kwargs

    # --- what a run says at its end

    def after_fit(self) -> None:
        results = None
        require_best_checkpoint(self.trainer)
        test = self.config[self.subcommand].test_after_fit and not is_trial(self.trainer)
        if test:
            best = best_checkpoint(self.trainer)
            path = best.best_model_path if best is not None else ""
            if path:
                # Not by ckpt_path: where weights are averaged, Lightning's callback would put those that were not
                # averaged back in place of them.
                self.model.load_state_dict(load_checkpoint(Path(path))["state_dict"])
                measured = self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
                results = measured[0] if measured else None
        if self.trainer.is_global_zero:
            if not is_trial(self.trainer):
                write_result(run_folder(self.trainer), results, self.datamodule.sizes())
            print_fit(self.trainer, self.datamodule, results, asked_for_test=test)

    def after_validate(self) -> None:
        print_evaluation(self.trainer, self.datamodule)

    def after_test(self) -> None:
        folder, limit = self.expanded.folder, self.config[self.subcommand].trainer.limit_test_batches
        may_write = self.trainer.is_global_zero and not is_trial(self.trainer) and not is_part(limit)
        # The run's accuracy B is that of its best checkpoint on all of the test set.
        if folder is not None and may_write and self._tests_best(folder) and writable(folder):
            if others := self._others_than_in_training(folder):
                _log.warning("With other %s than in training, this is no result of the run.", ", ".join(others))
            elif in_use(folder):
                _log.warning("The run is still in training, and its best checkpoint may change: no result is kept.")
            else:
                write_test_result(folder, self.trainer.callback_metrics, self.datamodule.sizes())
        print_evaluation(self.trainer, self.datamodule)

    def _tests_best(self, folder: RunFolder) -> bool:
        return Path(str(self.config[self.subcommand].ckpt_path)).resolve() == folder.best.resolve()

    def _tests_best_as_in_training(self, folder: RunFolder) -> bool:
        """True if a test can give the run's accuracy B, as far as its arguments tell."""
        config, run = self.config[self.subcommand], read_run(folder.path)
        root = config.data.init_args.root
        if is_part(config.trainer.limit_test_batches) or root != run.setting("data.root", root) or in_use(folder):
            return False
        return self._tests_best(folder) and not self._other_settings(run)

    def _other_settings(self, run: Run) -> list[str]:
        """Settings of an evaluation on which its accuracy depends, and that are not those of the run."""
        config = self.config[self.subcommand]
        others = [name for name in self.changed if name == "trainer.precision" or name.startswith("data.")]
        others = [name for name in others if not key_of(name).training_only]
        if config.engine is not None:
            others.append("engine")
        if config.seed_everything != run.setting("seed_everything", config.seed_everything):
            others.append("seed_everything")
        return others

    def _others_than_in_training(self, folder: RunFolder) -> list[str]:
        """Settings and data in which a test differs from the run, so that its accuracy is not the run's result."""
        config, run = self.config[self.subcommand], read_run(folder.path)
        others = self._other_settings(run)
        known, root = run.facts.get("test_content"), config.data.init_args.root
        if known is None:  # a run of an earlier version: its test set cannot be compared
            if root != run.setting("data.root", root):
                others.append("data.root")
        elif known != content_of(self.datamodule, train=False):
            others.append("test set")
        return others

    def after_predict(self) -> None:
        print_evaluation(self.trainer, self.datamodule)


def require_best_checkpoint(trainer: L.Trainer) -> None:
    """End a fit without a result if its best checkpoint was deleted meanwhile.

    Raises:
        CheckpointError: it was.
    """
    best = best_checkpoint(trainer)
    if best is None or best.best_model_score is None or is_trial(trainer) or not trainer.is_global_zero:
        return
    path = run_folder(trainer).best
    if not path.is_file():
        raise CheckpointError(
            f"{path}, the best checkpoint ({100 * float(best.best_model_score):.2f} %), was deleted during the run, "
            "which has no result without it. Restore it and resume, or start a new run from "
            f"{run_folder(trainer).last} with --ckpt_path and another --run_folder."
        )


def place_absolutely(data: Any) -> None:
    """Make the folders among a data set's arguments absolute: a run may be resumed from another folder."""
    for name in ("root", "store"):
        if data.get(name) and not is_address(str(data[name])):
            data[name] = str(Path(data[name]).expanduser().absolute())


def writable(folder: RunFolder) -> bool:
    """True if a run's folder is writable."""
    return os.access(folder.path, os.W_OK)


def evaluation_folder(folder: RunFolder, command: str) -> RunFolder:
    """Folder of an evaluation: beside the checkpoint, or below `runs/` if that is on read-only storage."""
    if writable(folder):
        return folder.evaluation(command)
    elsewhere = RunFolder(Path(RUNS, *folder.path.parts[-2:])).evaluation(command)
    there = next(path for path in (elsewhere.path.absolute(), *elsewhere.path.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise UserError(f"neither {folder.path} nor {there} can be written: call it from a folder that can be.")
    _log.warning("%s cannot be written: what is measured goes to %s.", folder.path, elsewhere.path)
    return elsewhere


def end_if_finished(expanded: Expanded, given: dict[str, Any]) -> None:
    """End the program if `--resume auto` finds a finished run."""
    assert expanded.folder is not None
    stored = expanded.stored.config
    assert stored is not None
    run = read_run(expanded.folder.path)
    limits = ("max_epochs", "max_steps", "max_time")
    if run.status == "finished" and all(stored["trainer"][k] == given["trainer"][k] for k in limits):
        accuracy = "" if run.accuracy is None else f", {100 * run.accuracy:.2f} %"
        raise Stopped(0, f"{expanded.folder.path} is finished{accuracy}: nothing to do.")


def needs_sync_batchnorm(trainer: L.Trainer) -> bool:
    """True if several GPUs train together: BN's statistics are then those of all parts of the batch."""
    return trainer.world_size > 1 and isinstance(trainer.accelerator, CUDAAccelerator)


# Messages of Lightning at every start or checkpoint that tell a user nothing.
_NOISE = (
    "💡 Tip",
    "`weights_only` was not set",
    "TPU available",
    "GPU available: False",
    "Restoring states",
    "Found current_model_state",
    "Loaded model weights",
    "`Trainer.fit` stopped",
)


def _tells_something(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    # The test after a fit adds the task's own callbacks again.
    return not text.startswith(_NOISE) and not text.endswith("callbacks passed to Trainer: FiniteGuard, StepSeeds")


def quieten() -> None:
    for handler in logging.getLogger("lightning").handlers + logging.getLogger("lightning.pytorch").handlers:
        handler.addFilter(_tells_something)
    # lightning 2.6 calls what torch 2.13 deprecates
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    # Of DDP: the strides of a weight of one input channel are open, and its gradient has others. All else agrees.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # Images lie in memory and are cut into batches at once: worker processes would only slow them down.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # An evaluation does not need the callbacks of the training.
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")
    if "SLURM_JOB_ID" not in os.environ:  # on a machine of a cluster where no job runs
        warnings.filterwarnings("ignore", message="The `srun` command is available on your system but is not used")
    # A resumed run keeps its folder; a new one never gets an old folder.
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # All metrics are logged once an epoch.
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")


def run(expanded: Expanded) -> int:
    """Train or evaluate.

    Raises:
        UserError: a mistake that this project refuses; other errors are raised as they are.
    """
    quieten()
    stop = StopOnSignal(requeues=expanded.resumes)
    try:
        with on_termination(stop.terminate), ExitStack() as held:
            PlifCLI(expanded, held, stop)
    except SIGTERMException:
        return 128 + signal.SIGTERM
    except (SystemExit, KeyboardInterrupt) as ended:
        # Lightning ends an interrupted fit with status 1.
        if isinstance(ended, KeyboardInterrupt) or isinstance(ended.__context__, KeyboardInterrupt):
            stop.say_if_trained()
            if stop.terminated is not None:
                before = " before training began" if expanded.command == "fit" else ""
                raise Stopped(128 + stop.terminated, f"stopped by {stop.terminated.name}{before}.") from None
            raise KeyboardInterrupt from None
        raise
    except Exception as error:
        ignore_loaders_end()
        if (own := own_error(error)) is not None:
            raise own from error
        if stop.resumption:
            _log.error(stop.resumption)
        raise
    return 0
