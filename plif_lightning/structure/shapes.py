"""Names and shapes of a structure's layers for an input, and the mistakes that shapes show."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from plif_lightning.errors import UserError
from plif_lightning.structure.layers import FC, LayerSpec, Placing, Structure, Votes

# Arguments of a network that its data determine.
FROM_DATA = ("input_shape", "num_classes", "time_steps")


def layer_specs(
    structure: Structure, input_shape: Sequence[int], num_classes: int, spikes: bool = False
) -> list[LayerSpec]:
    """The layers of a structure with their names and shapes; `spikes`: the network's input is zeros and ones.

    Raises:
        UserError: a map shrinks to nothing, a residual block adds unequal shapes, groups do not divide channels, or the
            output has another number of classes; names the layer.
    """
    shape = tuple(input_shape)
    specs = list(Placing(shape).specs_of(structure.layers, shape, spikes))
    require_classes(structure, num_classes)
    return specs


def every_layer(layers: Iterable[LayerSpec]) -> Iterator[LayerSpec]:
    """Layer specs in order; a residual block follows its layers."""
    for spec in layers:
        yield from every_layer((*spec.branch, *spec.shortcut))
        yield spec


def require_classes(structure: Structure, num_classes: int) -> None:
    """Refuse an output of another number of classes than the data's."""
    last = max(i for i, layer in enumerate(structure.layers) if isinstance(layer, FC))
    fc, votes = structure.layers[last], structure.layers[-1]
    assert isinstance(fc, FC)
    per_class = votes.per_class if isinstance(votes, Votes) else 1
    if fc.features == per_class * num_classes:
        return
    layers = list(structure.layers)
    layers[last] = replace(fc, features=per_class * num_classes)
    of_each = f" ({per_class} for each class)" if per_class > 1 else ""
    raise UserError(
        f"the last layer, FC{fc.features}, gives {fc.features / per_class:g} classes{of_each}, but the data has "
        f"{num_classes}: pass --model.structure '{Structure(tuple(layers))}'."
    )
