"""Read a network's structure from its notation.

    network  = items
    items    = item {"-" item}
    item     = "{" items "}*" number                          repeated
             | "c" n "k" size ["s" size] ["p" size] ["d" size] ["g" n]    convolution
             | "BN"                                           after a convolution
             | NAME ["(" name "=" value {"," name "=" value} ")"]         neurons: PLIF, LIF(init_tau=3.0), my.Neuron
             | ("MP" | "AP") ["k" size "s" size ["p" size]]   pool; without a size over the full map
             | "DP" ["(" p ")"]                               dropout before an FC layer
             | "DELAY(max_delay=" n ["," ...] ")"             learned delays, with the arguments of `layers.delay.Delay`
             | ["R"] "FC" n ["b"]                             FC layer; b: with a bias; R: recurrent
             | ("ADD" | "AND" | "IAND") "(" items ["|" items] ")"         residual block: branch | shortcut
             | "LI" ["(" ... ")"] | "LAST"                    leaky integral or last step of a readout, at the end
    size     = n | n "x" n                                    height x width

After the last FC layer, `APkMsM` averages the M output neurons of each class. Each part is read by its class in
`layers`; what stands here is how parts follow each other.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from plif_lightning.structure.base import Group, Part
from plif_lightning.structure.layers import PARTS, Structure, expected_parts
from plif_lightning.structure.reader import Reader


def parse(text: str) -> Structure:
    """The structure that a text in the notation describes.

    Raises:
        UserError: the text is not in the notation; the message points at the place.

    >>> str(parse("c8k3s1-BN-PLIF-MPk2s2-c8k3s1-BN-PLIF-MPk2s2-DP-FC20-PLIF-APk10s10"))
    '{c8k3s1-BN-PLIF-MPk2s2}*2-DP-FC20-PLIF-APk10s10'
    """
    reader = _Notation(text)
    items = list(reader.items())
    if reader.at < len(text):
        reader.refuse(reader.at, f"expected - or the end, got {reader.got()}")
    return Structure(reader.grouped(items, is_outermost=True))


class _Notation(Reader):
    """Recursive descent over the text. An item is a part and the place where it begins."""

    def layers(self, is_outermost: bool) -> tuple[Any, ...]:
        return self.grouped(self.items(), is_outermost)

    def grouped(self, items: Iterable[tuple[int, Part]], is_outermost: bool) -> tuple[Any, ...]:
        """Parts as layers: BN, neurons, dropout and pools are attached to theirs."""
        group = Group(self, is_outermost)
        for at, part in items:
            group.add(at, part)
        return group.finish()

    def items(self) -> Iterator[tuple[int, Part]]:
        """Parts of a sequence, with repetitions written out."""
        while True:
            yield from self.item()
            if not self.take("-"):
                return

    def item(self) -> list[tuple[int, Part]]:
        start = self.at
        if self.take("{"):
            inner = list(self.items())
            self.require("}*", "}* and how often")
            return inner * self.number("how often the part in braces is repeated")
        for kind in PARTS:
            if match := self.take_match(kind.pattern):
                return [(start, kind.read(self, start, match))]
        return self.refuse(start, f"expected {expected_parts()}, got {self.got()}")
