"""Options of fit, validate, test and predict beside network, data and Trainer; the part of each is in `ROLES`."""

from jsonargparse.typing import NonNegativeInt
from lightning.pytorch.cli import LightningArgumentParser

from plif_lightning.callbacks import RunCheckpoints
from plif_lightning.callbacks.checkpoints import Ties
from plif_lightning.deploy import Engine


def add_options(parser: LightningArgumentParser) -> None:
    """Declare the options."""
    parser.add_lightning_class_args(RunCheckpoints, "checkpoint")
    parser.add_argument(
        "--run_folder",
        type=str | None,
        default=None,
        help="Folder of a fit, instead of runs/NAME/version_N: the run there is started, or resumed, or finished "
        "already.",
    )
    parser.add_argument(
        "--task",
        type=str | None,
        default=None,
        help="Import path of a subclass of SpikingClassifier, such as my_task.Task; `--model my_task.Task` is the "
        "same. Its arguments are the model's.",
    )
    parser.add_argument(
        "--record_samples",
        type=NonNegativeInt,
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
        "--accept_edited_code",
        type=bool,
        default=False,
        help="Resume a run although the code of its network, neurons or loss was edited; the record says so.",
    )
    parser.add_argument(
        "--stop_after_step",
        type=int | None,
        default=None,
        help="Stop after this step of the optimiser, as on Ctrl-C; the run can be resumed.",
    )
    parser.add_argument(
        "--engine",
        type=Engine | None,
        default=None,
        help="predict and test: form of the BN-folded network on a CPU; auto takes the fastest.",
    )
