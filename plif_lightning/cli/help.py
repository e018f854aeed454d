"""One screen of help for each command, with its most common options; `--help-all` lists all."""

from plif_lightning.cli.commands import COMMANDS, EVALUATIONS
from plif_lightning.runtime import program

_MODEL = (
    ("--model.neuron", "plif (tau learned), lif (fixed), if, clif, alif, qif, eif, klif, synaptic, glif"),
    ("--model.neuron FILE.CLASS", "a neuron of your own, in FILE.py (docs/tutorials/neuron.md)"),
    ("--model.init_tau", "tau_0 > 1 of plif, tau of others, in time-steps"),
    ("--model.v_threshold, --model.reset", "its threshold; hard or soft reset"),
    ("--model.pooling", "max or avg"),
    ("--model.loss", "per_step (the paper), rate, per_step_cross_entropy, cross_entropy, tet"),
    ("--model.structure", "the layers, as in Table S1 (docs/howto/network.md)"),
    ("--model.channels, --model.fc_features", "size of a network like the paper's"),
    ("--model.network FILE.CLASS", "a network of your own, in FILE.py"),
    ("--model.backend", "auto, reference, cpu or triton"),
    ("--model.sparse", "skip silent inputs on a CPU: auto, never or always"),
    ("--model.optimizer", "a class of torch.optim; --model.optimizer.lr 0.01"),
)
_DATA = (
    ("--data.root", "folder of the data sets"),
    ("--data.time_steps", "T"),
    (
        "--data.validation",
        "choose the epoch on the test set: test (protocol A), or on a part held out: holdout (B)",
    ),
    ("--data.batch_size", "training samples per process and step"),
    ("--data.augmentation+=NAME", "augment training samples; may be repeated"),
)
_TRAINER = (
    ("--trainer.max_epochs", "epochs"),
    ("--trainer.precision", "32-true, bf16-mixed, ..."),
    ("--trainer.devices", "processes or GPUs; --trainer.strategy ddp"),
)
_OPTIONS: dict[str, tuple[tuple[str, tuple[tuple[str, str], ...]], ...]] = {
    "fit": (
        (
            "run",
            (
                ("--config", "a configuration by path or name; later ones override earlier ones"),
                ("--ckpt_path last", "resume the run whose config.yaml is given with --config"),
                ("--run_folder", "folder of the run, instead of runs/NAME/version_N"),
                ("--resume auto", "start or resume the run in --run_folder; safe to repeat, for schedulers"),
                ("--seed_everything", "seed of the run"),
                ("--test_after_fit", "true: test the best checkpoint once, at the end"),
            ),
        ),
        ("network and optimiser", _MODEL),
        ("data (`fit --help --config NAME` or `--data NAME` lists all arguments of its data set)", _DATA),
        ("training", _TRAINER),
    ),
    "prepare": (
        (
            "data",
            (
                ("--config", "a configuration by path or name"),
                ("--data.root", "folder of the data sets"),
                ("--data.download", "false: download nothing"),
                ("--verify true", "read all files and compare their checksums"),
            ),
        ),
    ),
}
_ENGINE = dict.fromkeys(
    ("test", "predict"), (("--engine", "float32 or int8: BN folded and frozen, event-driven, for a CPU"),)
)
for _name in EVALUATIONS:
    _OPTIONS[_name] = (
        (
            "evaluation",
            (
                ("--ckpt_path", "the checkpoint, such as RUN/checkpoints/best.ckpt; it contains its configuration"),
                ("--data.root", "folder of the data sets, if it has moved"),
                ("--data.num_workers", "processes that load data"),
                ("--trainer.devices", "processes or GPUs"),
                *_ENGINE.get(_name, ()),
            ),
        ),
    )
_EXAMPLES = {
    "fit": "fit --config fashionmnist --config lif --trainer.max_epochs 3",
    "prepare": "prepare --config nmnist --data.root DIR",
    "validate": "validate --ckpt_path RUN/checkpoints/best.ckpt",
    "test": "test --ckpt_path RUN/checkpoints/best.ckpt",
    "predict": "predict --ckpt_path RUN/checkpoints/best.ckpt",
}


def _columns(rows: tuple[tuple[str, str], ...]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:{width}}  {text}" for name, text in rows]


def overview() -> str:
    """Return the overview of all commands."""
    call = program.shown()
    return "\n".join(
        [
            "Spiking networks with learnable membrane time constants (PLIF).",
            "",
            f"usage: {call} COMMAND [ARGUMENTS]",
            "",
            *_columns(tuple((command.name, command.summary) for command in COMMANDS.values())),
            "",
            "prepare, fit, validate, test and predict take --config NAME, --model.KEY VALUE, --data.KEY VALUE and",
            "--trainer.KEY VALUE.",
            "",
            f"To start: {call} fit --config quickstart (on a CPU, nothing to download)",
            f"More on each: {call} COMMAND --help; all arguments: {call} COMMAND --help-all; --version",
        ]
    )


def screen(name: str) -> str:
    """Return the screen of a command that LightningCLI parses."""
    call = program.shown()
    lines = [f"{call} {name}: {COMMANDS[name].summary}.", ""]
    for title, rows in _OPTIONS[name]:
        lines += [f"{title}:", *_columns(rows), ""]
    lines += [f"for example: {call} {_EXAMPLES[name]}", f"all arguments: {call} {name} --help-all"]
    return "\n".join(lines)
