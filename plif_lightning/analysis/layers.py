"""Table of recorded layer values: means over seeds in the best epoch."""

import math
import statistics
from collections.abc import Sequence

from plif_lightning.analysis.select import Group, data_title, groups, names_of
from plif_lightning.analysis.tables import Table
from plif_lightning.analysis.words import labels_of, left_out, notes_on_groups, protocol_and_length
from plif_lightning.runs.metrics import LAYER_TITLES, layer_quantities, layer_values
from plif_lightning.runs.run import Run


def layer_table(runs: Sequence[Run]) -> Table:
    """Time constant, firing rate and whatever else is recorded of each layer, a row a layer and setting."""
    averaged = groups(runs)
    quantities = layer_quantities([run.best_metrics for group in averaged for run in group.runs])
    rows, names = [], []
    each, shared = labels_of(averaged)
    for group, label in zip(averaged, each, strict=True):
        layers = dict.fromkeys(
            layer for quantity in quantities for run in group.runs for layer in layer_values(run.best_metrics, quantity)
        )
        of_group = [data_title(group.runs[0]), label, *protocol_and_length(group)]
        rows += [[*of_group, layer, *(_mean(group, quantity, layer) for quantity in quantities)] for layer in layers]
        names += [names_of(group)] * len(layers)
    columns = ["data set", "setting", "protocol", "T", "epochs", "layer"]
    columns += [LAYER_TITLES.get(quantity, quantity) for quantity in quantities]
    means = "Means over seeds of the values in the best epoch."
    notes = [*left_out(runs), *shared, means, *notes_on_groups(averaged)] if rows else left_out(runs)
    return Table("layers", "Layers", columns, rows, notes, names)


def _mean(group: Group, quantity: str, layer: str) -> str:
    values = [run.best_metrics.get(f"{quantity}/{layer}", math.nan) for run in group.runs]
    mean = statistics.fmean(values)
    return "" if math.isnan(mean) else f"{mean:.4g}"
