"""A run as its folder, or W&B, tells it."""

from dataclasses import dataclass, field
from typing import Any, Literal

from plif_lightning.runs.folder import RunFolder
from plif_lightning.runs.metrics import layer_values

Status = Literal["finished", "running", "unfinished", "unreadable"]


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it.

    Attributes:
        folder: where it is.
        name: the folder, from the one that was searched.
        status: unreadable where there is nothing to be told of it.
        config: nested, as `config.yaml` holds it.
        metrics: a row per epoch.
        command: arguments of main.py.
        facts: data set, origin, samples and protocol, as the run wrote them.
        test: accuracy of the test set measured once, as a share; None where it was not.
        surroundings: machine, versions and commit that it was computed with.
        problems: what could not be read, in sentences.
        started: when it was begun or resumed last [s since 1970]; 0 where that is not known.
        changes: what it was told otherwise when it was resumed, in words, in their order.
    """

    folder: RunFolder
    name: str
    status: Status
    config: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, float]] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    test: float | None = None
    surroundings: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    started: float = 0.0
    changes: list[str] = field(default_factory=list)

    def setting(self, key: str, default: Any = None) -> Any:
        """A value of the configuration by its dotted key, such as `model.init_tau` or `data.time_steps`."""
        value: Any = self.config
        for name in key.split("."):
            if isinstance(value, dict) and name not in value and isinstance(value.get("init_args"), dict):
                value = value["init_args"]
            if not isinstance(value, dict) or name not in value:
                return default
            value = value[name]
        return value

    @property
    def data_set(self) -> str:
        """Name of the data module's class; with its module where it is another program's."""
        path = str(self.setting("data.class_path", "?"))
        return path.rsplit(".", 1)[-1] if path.startswith("plif_lightning.") else path

    @property
    def epochs(self) -> int:
        """Epochs since the weights were new, those before a run began from another one's checkpoint included."""
        return int(self.metrics[-1]["epoch"]) + 1 if self.metrics else 0

    @property
    def protocol(self) -> Literal["A", "B"]:
        """A: the best epoch on the test set; B: the best on a part held out of the training set, tested once."""
        return "B" if self.setting("data.validation") == "holdout" else "A"

    @property
    def val_key(self) -> str:
        return "val/acc" if self.protocol == "B" else "test_as_val/acc"

    @property
    def best_of_ties(self) -> str:
        """Which of several epochs with the same validation accuracy is the best one: first or last."""
        # Runs that do not name it are older than it; those that leave it open follow their protocol.
        return self.setting("best_of_ties", "first") or ("last" if self.protocol == "B" else "first")

    @property
    def best(self) -> tuple[int, float] | None:
        """(epoch, counted from 1; accuracy as a share) of the best validation; None before the first."""
        rows = [row for row in self.metrics if 0 <= row.get(self.val_key, float("nan")) <= 1]
        if not rows:
            return None
        if self.best_of_ties == "last":
            rows.reverse()
        row = max(rows, key=lambda row: row[self.val_key])
        return int(row["epoch"]) + 1, row[self.val_key]

    @property
    def accuracy(self) -> float | None:
        """What the run's protocol reports, as a share: the best epoch's (A), or the one test's (B)."""
        if self.protocol == "B":
            return self.test
        return self.best[1] if self.best else None

    @property
    def tested_samples(self) -> int | None:
        """Samples that `accuracy` is a share of."""
        samples = self.facts.get("samples", {})
        found = samples.get("test", samples.get("test as val")) if isinstance(samples, dict) else None
        return found if isinstance(found, int) and found > 0 else None

    def curve(self, key: str) -> tuple[list[float], list[float]]:
        """Epochs, counted from 1, and values of one metric."""
        rows = [row for row in self.metrics if key in row]
        return [row["epoch"] + 1 for row in rows], [row[key] for row in rows]

    def layers(self, kind: str) -> list[str]:
        """Layers that have values of a kind (`tau`, `rate`), in the order of the network."""
        found: dict[str, None] = {}
        for row in self.metrics:
            found |= dict.fromkeys(layer_values(row, kind))
        return list(found)
