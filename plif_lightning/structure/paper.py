"""The paper's network by numbers, n_conv, n_down and so on: a second way to a structure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from plif_lightning.errors import UserError
from plif_lightning.structure.layers import FC, Conv, Neurons, Pool, Structure, Votes
from plif_lightning.structure.notation import parse
from plif_lightning.structure.shapes import require_classes

PLIF = Neurons("PLIF")


@dataclass(frozen=True)
class Numbers:
    """The numbers of Table 1.

    Attributes:
        n_conv: conv-BN-neuron blocks before each pool (N_conv).
        n_down: pools (N_down).
        n_fc: FC layers, the output layer included (N_fc).
        channels: output channels of every convolution, or of the convolutions before each pool.
        fc_features: output features of every FC layer but the last.
        votes_per_class: M, output neurons per class.
    """

    n_conv: int = 1
    n_down: int = 2
    n_fc: int = 2
    channels: int | Sequence[int] = 128
    fc_features: int = 2048
    votes_per_class: int = 10


# The default of each.
NUMBERS: dict[str, Any] = asdict(Numbers())


def resolve_structure(structure: str | None, numbers: Mapping[str, Any], num_classes: int) -> Structure:
    """The structure that a text and numbers describe together.

    Args:
        structure: in the notation; None for the paper's network of these numbers.
        numbers: some of `Numbers`, by name; they replace numbers of a structure that has the paper's form.
        num_classes: number of classes, for the last layer of a structure by numbers.

    Raises:
        UserError: a text that is not in the notation; a number below 1; numbers for a structure of another form.
    """
    numbers = {name: value for name, value in numbers.items() if value is not None}
    parsed = None if structure is None else parse(structure)
    if parsed is not None and not numbers:
        return parsed
    base = Numbers() if parsed is None else numbers_of(parsed)
    if base is None:
        raise UserError(
            f"{' and '.join(numbers)} cannot be set beside a structure that is not like the paper's, "
            "{c128k3s1-BN-PLIF-MPk2s2}*2-DP-FC2048-PLIF-DP-FC100-PLIF-APk10s10: change the structure itself, or pass "
            "--model.structure null for the paper's with these numbers."
        )
    wanted = replace(base, **numbers)
    if parsed is not None:
        require_classes(parsed, num_classes)
    if wanted.n_fc == 1 and wanted.fc_features != base.fc_features:
        raise UserError(f"fc_features={numbers['fc_features']} has no layer in a structure with one FC layer.")
    return _of_numbers(wanted, num_classes)


def _of_numbers(numbers: Numbers, num_classes: int) -> Structure:
    for name, value in asdict(numbers).items():
        values = value if name == "channels" and isinstance(value, (list, tuple)) else [value]
        if not values or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
            raise UserError(f"{name} must be at least 1, got {value}.")
    channels = numbers.channels
    widths = [channels] * numbers.n_down if isinstance(channels, int) else list(channels)
    if len(widths) != numbers.n_down:
        raise UserError(f"channels must be one number or n_down = {numbers.n_down} of them, got {len(widths)}.")
    convs = []
    for width in widths:
        conv = Conv(width, 3, neurons=PLIF)
        convs += [conv] * (numbers.n_conv - 1) + [Conv(width, 3, neurons=PLIF, pool=Pool("MP", 2, 2))]
    features = [*[numbers.fc_features] * (numbers.n_fc - 1), numbers.votes_per_class * num_classes]
    fcs = [FC(number, dropout=None, neurons=PLIF) for number in features]
    return Structure((*convs, *fcs, Votes(numbers.votes_per_class)))


def numbers_of(structure: Structure) -> Numbers | None:
    """The numbers of a structure that has the paper's form, n_fc FC layers of a width included; otherwise None."""
    *layers, last = structure.layers
    convs = [layer for layer in layers if isinstance(layer, Conv)]
    fcs = [layer for layer in layers if isinstance(layer, FC)]
    stages = [i + 1 for i, conv in enumerate(convs) if conv.pool is not None]
    if not isinstance(last, Votes) or not stages or not fcs:
        return None
    n_down, n_conv = len(stages), stages[0]
    widths = [convs[end - 1].channels for end in stages]
    numbers = Numbers(
        n_conv,
        n_down,
        len(fcs),
        widths[0] if len(set(widths)) == 1 else tuple(widths),
        fcs[0].features if len(fcs) > 1 else NUMBERS["fc_features"],
        last.per_class,
    )
    classes, rest = divmod(fcs[-1].features, last.per_class)
    return numbers if not rest and _of_numbers(numbers, classes) == structure else None
