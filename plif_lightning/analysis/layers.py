"""What is recorded of each layer, in a table: means over seeds in the best epoch."""

import math
import statistics
from collections.abc import Sequence

from plif_lightning.analysis.grouping import Group, data_title, groups, labels_of, names_of, surroundings_in_words
from plif_lightning.analysis.tables import Table
from plif_lightning.runs.metrics import LAYER_TITLES, layer_kinds, layer_values
from plif_lightning.runs.run import Run


def layer_table(runs: Sequence[Run]) -> Table:
    """Time constant, firing rate and whatever else is recorded of each layer, a row a layer and setting."""
    found = groups(runs)
    kinds = layer_kinds([run.best_metrics for group in found for run in group.runs])
    rows, names = [], []
    each, shared = labels_of(found)
    for group, label in zip(found, each, strict=True):
        layers = dict.fromkeys(
            layer for kind in kinds for run in group.runs for layer in layer_values(run.best_metrics, kind)
        )
        title = data_title(group.runs[0])
        rows += [[title, label, layer, *(_mean(group, kind, layer) for kind in kinds)] for layer in layers]
        names += [names_of(group)] * len(layers)
    columns = ["data set", "setting", "layer", *(LAYER_TITLES.get(kind, kind) for kind in kinds)]
    means = "Means over seeds of the values in the best epoch."
    notes = [*shared, means, *surroundings_in_words(found)] if rows else []
    return Table("layers", "Layers", columns, rows, notes, names)


def _mean(group: Group, kind: str, layer: str) -> str:
    values = [run.best_metrics.get(f"{kind}/{layer}", math.nan) for run in group.runs]
    mean = statistics.fmean(values)
    return "" if math.isnan(mean) else f"{mean:.4g}"
