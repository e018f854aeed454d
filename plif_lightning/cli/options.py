"""Options of fit, validate, test and predict beside network, data and Trainer; the part of each is in `ROLES`."""

from dataclasses import dataclass

from jsonargparse.typing import NonNegativeInt
from lightning.pytorch.cli import LightningArgumentParser

from plif_lightning.callbacks import RunCheckpoints
from plif_lightning.callbacks.checkpoints import Ties
from plif_lightning.deploy import Engine


@dataclass
class Options:
    """Options of a run.

    Args:
        run_folder: Folder of a fit, instead of runs/NAME/version_N: the run there is started, or resumed, or finished
            already.
        task: Import path of a subclass of SpikingClassifier, such as my_task.Task; `--model my_task.Task` is the same.
            Its arguments are the model's.
        record_samples: Samples, one per class, whose spikes in the best network are recorded when a fit ends.
        test_after_fit: Test the best checkpoint once, right after fit.
        best_of_ties: Which of several epochs with the same validation accuracy is the best one (null: the last where a
            held-out part validates, as in the authors' code; the first on the test set).
        accept_edited_code: Resume a run although the code of its network, neurons or loss was edited; the record says
            so.
        stop_after_step: Stop after this step of the optimiser, as on Ctrl-C; the run can be resumed.
        engine: predict and test: form of the BN-folded network on a CPU; auto takes the fastest.
    """

    run_folder: str | None = None
    task: str | None = None
    record_samples: NonNegativeInt = 10
    test_after_fit: bool = False
    best_of_ties: Ties | None = None
    accept_edited_code: bool = False
    stop_after_step: int | None = None
    engine: Engine | None = None


def add_options(parser: LightningArgumentParser) -> None:
    """Declare the options."""
    parser.add_lightning_class_args(RunCheckpoints, "checkpoint")
    parser.add_class_arguments(Options, instantiate=False)
