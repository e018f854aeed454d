"""Read a network's structure from its notation, with errors that point at the place.

    network  = items
    items    = item {"-" item}
    item     = "{" items "}*" number                          repeated
             | "c" n "k" size ["s" size] ["p" size] ["d" size] ["g" n]    convolution
             | "BN"                                           after a convolution
             | NAME ["(" name "=" value {"," name "=" value} ")"]         neurons: PLIF, LIF(init_tau=3.0), my.Neuron
             | ("MP" | "AP") ["k" size "s" size ["p" size]]   pool; without a size over the full map
             | "DP" ["(" p ")"]                               dropout before an FC layer
             | ["R"] "FC" n ["b"]                             FC layer; b: with a bias; R: recurrent
             | ("ADD" | "AND" | "IAND") "(" items ["|" items] ")"         residual block: branch | shortcut
             | "LI" ["(" ... ")"] | "LAST"                    leaky integral or last step of a readout, at the end
    size     = n | n "x" n                                    height x width

After the last FC layer, `APkMsM` averages the M output neurons of each class.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn, get_args

from plif_lightning.errors import UserError
from plif_lightning.structure.layers import (
    FC,
    ArgumentValue,
    Combine,
    Conv,
    Neurons,
    NotationLayer,
    Pool,
    Readout,
    Residual,
    Size,
    Structure,
    Votes,
    gives_spikes,
    half_of,
    pair,
)

# Neurons that have a name: their classes in `neurons.published`; on the command line in lower case.
NEURONS = ("PLIF", "LIF", "IF", "CLIF", "ALIF", "QIF", "EIF", "KLIF", "Synaptic", "GLIF", "ILIF")
_READOUTS = ("LI", "LAST")
_CONV = re.compile(r"c(\d+)k(\d+(?:x\d+)?)(?:s(\d+(?:x\d+)?))?(?:p(\d+(?:x\d+)?))?(?:d(\d+(?:x\d+)?))?(?:g(\d+))?")
_POOL = re.compile(r"(MP|AP)(?:k(\d+(?:x\d+)?)s(\d+(?:x\d+)?)(?:p(\d+(?:x\d+)?))?)?")
_FC = re.compile(r"(R?)FC(\d+)(b?)")
_WORD = re.compile(r"[A-Za-z_][\w.]*")
_ITEM = "a convolution (c128k3s1), BN, neurons (PLIF), a pool (MPk2s2), DP, FC100, ADD(...) or {...}*2"


class _Drop(NamedTuple):
    p: float | None


class _Norm(NamedTuple):
    pass


class _ItemAt(NamedTuple):
    """A part of the text, and where it begins."""

    at: int
    part: Any


def parse(text: str) -> Structure:
    """The structure that a text in the notation describes.

    Raises:
        UserError: the text is not in the notation; the message points at the place.

    >>> str(parse("c8k3s1-BN-PLIF-MPk2s2-c8k3s1-BN-PLIF-MPk2s2-DP-FC20-PLIF-APk10s10"))
    '{c8k3s1-BN-PLIF-MPk2s2}*2-DP-FC20-PLIF-APk10s10'
    """
    return _Reader(text).structure()


class _Reader:
    """Recursive descent over the text."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def refuse(self, at: int, why: str) -> NoReturn:
        """Point at a place of the text, of which a part is shown if it is long."""
        first = max(0, at - 60)
        excerpt = self.text[first : at + 60].replace("\n", " ")
        before, after = "..." if first else "", "..." if at + 60 < len(self.text) else ""
        raise UserError(
            f"structure, character {at + 1}: {why}.\n    {before}{excerpt}{after}\n    "
            f"{' ' * (at - first + len(before))}^"
        )

    def structure(self) -> Structure:
        items = list(self.items())
        if self.at < len(self.text):
            self.refuse(self.at, f"expected - or the end, got {self.text[self.at]!r}")
        layers = self.group_layers(items, outermost=True)
        return Structure(tuple(layers))

    def items(self) -> Iterator[_ItemAt]:
        """Parts of a sequence, with repetitions written out."""
        while True:
            yield from self.item()
            if not self.take("-"):
                return

    def take(self, sign: str) -> bool:
        there = self.text.startswith(sign, self.at)
        self.at += len(sign) if there else 0
        return there

    def require(self, sign: str, expected: str) -> None:
        if not self.take(sign):
            got = repr(self.text[self.at]) if self.at < len(self.text) else "the end"
            self.refuse(self.at, f"expected {expected}, got {got}")

    def item(self) -> list[_ItemAt]:
        start = self.at
        if self.take("{"):
            inner = list(self.items())
            self.require("}*", "}* and how often")
            return inner * self.number("how often the part in braces is repeated")
        if match := self.take_match(_CONV):
            return [_ItemAt(start, self.conv(start, match))]
        if match := self.take_match(_FC):
            features = self.positive(start, match[2], "features")
            return [_ItemAt(start, FC(features, bool(match[3]), recurrent=bool(match[1])))]
        if match := self.take_match(_POOL):
            return [_ItemAt(start, self.pool(start, match))]
        word = _WORD.match(self.text, self.at)
        if word is None:
            got = repr(self.text[start]) if start < len(self.text) else "the end"
            self.refuse(start, f"expected {_ITEM}, got {got}")
        self.at = word.end()
        return [_ItemAt(start, self.named(start, word[0]))]

    def take_match(self, pattern: re.Pattern[str]) -> "re.Match[str] | None":
        """A match of a complete word."""
        match = pattern.match(self.text, self.at)
        if match is None or re.match(r"[\w.]", self.text[match.end() : match.end() + 1]):
            return None
        self.at = match.end()
        return match

    def number(self, noun: str) -> int:
        match = re.compile(r"\d+").match(self.text, self.at)
        if match is None:
            self.refuse(self.at, f"expected a number, {noun}")
        start, self.at = self.at, match.end()
        return self.positive(start, match[0], noun)

    def positive(self, at: int, digits: str, noun: str) -> int:
        if len(digits) > 12 or int(digits) < 1:
            self.refuse(at, f"{noun} must be at least 1, got {digits[:20]}")
        return int(digits)

    def size(self, at: int, text: str | None, noun: str, minimum: int = 1) -> Size | None:
        """A size from the text; equal sides as a number."""
        if text is None:
            return None
        sides = [int(side) for side in text.split("x")] if len(text) <= 12 else [0]
        if min(sides) < minimum or max(sides) > 10**4:
            self.refuse(at, f"{noun} must be from {minimum} to 10000, got {text[:20]}")
        return sides[0] if len(set(sides)) == 1 else (sides[0], sides[1])

    def conv(self, at: int, match: "re.Match[str]") -> Conv:
        channels, kernel, stride, padding, dilation, groups = match.groups()
        k = self.size(at, kernel, "the kernel")
        assert k is not None
        p = self.size(at, padding, "the padding", minimum=0)
        return Conv(
            self.positive(at, channels, "channels"),
            k,
            self.size(at, stride, "the stride") or 1,
            None if p == half_of(k) else p,
            self.size(at, dilation, "the dilation") or 1,
            1 if groups is None else self.positive(at, groups, "groups"),
            norm=False,
        )

    def pool(self, at: int, match: "re.Match[str]") -> Pool:
        kind: Any = match[1]
        kernel, stride = self.size(at, match[2], "the window"), self.size(at, match[3], "the stride")
        if kernel is None or stride is None:
            return Pool(kind)
        padding = self.size(at, match[4], "the padding", minimum=0) or 0
        if any(2 * p > k for k, p in zip(pair(kernel), pair(padding), strict=True)):
            self.refuse(at, "the padding of a pool must be at most half of its window")
        return Pool(kind, kernel, stride, padding)

    def named(self, at: int, word: str) -> Any:
        """An item that begins with a word: BN, DP, LI, LAST, a residual block or neurons."""
        if word == "BN":
            return _Norm()
        if word == "DP":
            return _Drop(self.probability() if self.take("(") else None)
        if word in get_args(Combine):
            return self.residual(at, word)
        if word not in (*_READOUTS, *NEURONS) and "." not in word:
            names = (*NEURONS, "BN", "DP", *_READOUTS, "ADD", "AND", "IAND")
            near = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
            near = near or [name for name in NEURONS if name.lower() == word.lower()]
            hint = f"did you mean {near[0]}" if near else f"expected {_ITEM}"
            self.refuse(at, f"{word} is no layer: {hint}")
        arguments = tuple(self.arguments()) if self.take("(") else ()
        return Readout(word, arguments) if word in _READOUTS else Neurons(word, arguments)

    def probability(self) -> float:
        start = self.at
        value = self.value()
        self.require(")", ")")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            self.refuse(start, "the drop probability must be at least 0 and below 1")
        return float(value)

    def arguments(self) -> Iterator[tuple[str, ArgumentValue]]:
        seen: set[str] = set()
        while True:
            start, name = self.at, re.compile(r"[A-Za-z_]\w*").match(self.text, self.at)
            if name is None:
                self.refuse(start, "expected the name of an argument, such as init_tau=3.0")
            if name[0] in seen:
                self.refuse(start, f"{name[0]} is given twice")
            seen.add(name[0])
            self.at = name.end()
            self.require("=", "= and a value")
            yield name[0], self.value()
            if self.take(")"):
                return
            self.require(",", ", or )")
            while self.take(" "):
                pass

    def value(self) -> ArgumentValue:
        match = re.compile(r"[^,()|{}=\s]+").match(self.text, self.at)
        if match is None:
            self.refuse(self.at, "expected a value")
        start, text, self.at = self.at, match[0], match.end()
        literals: dict[str, ArgumentValue] = {"true": True, "false": False, "null": None, "none": None}
        if text.lower() in literals:  # Python's too
            return literals[text.lower()]
        for kind in (int, float):
            try:
                number = kind(text)
            except ValueError:
                continue
            if not abs(number) < 1e300:  # infinity, NaN, and integers that no float holds
                self.refuse(start, "the value must be finite")
            return number
        if not re.fullmatch(r"[A-Za-z_][\w.]*", text):
            self.refuse(start, "the value must be a number, true, false, null or a name")
        return text

    def residual(self, at: int, combine: Any) -> Residual:
        self.require("(", f"( and the layers of {combine}")
        branch = self.group_layers(self.items(), outermost=False)
        shortcut = self.group_layers(self.items(), outermost=False) if self.take("|") else []
        self.require(")", "-, | and a shortcut, or )")
        if combine != "ADD":
            for side, layers in (("branch", branch), ("shortcut", shortcut)):
                if not gives_spikes(layers, True):
                    self.refuse(at, f"{combine} needs spikes, and its {side} ends without neurons")
        return Residual(combine, tuple(branch), tuple(shortcut))

    def group_layers(self, items: Iterable[_ItemAt], outermost: bool) -> list[NotationLayer]:
        """The parts of a sequence as layers: BN, neurons, dropout and pool attached to their layers."""
        group = _Group(self, outermost)
        for at, item in items:
            group.add(at, item)
        return group.finish()


class _Group:
    """Collects the layers of a sequence, part by part.

    Attributes:
        layers: the layers so far.
        drop: dropout that waits for its FC layer.
        flat: an FC layer was added.
        ended: nothing may follow.
    """

    def __init__(self, reader: _Reader, outermost: bool) -> None:
        self.reader, self.outermost = reader, outermost
        self.layers: list[NotationLayer] = []
        self.drop: _ItemAt | None = None
        self.flat = self.ended = False

    @property
    def last(self) -> NotationLayer | None:
        return self.layers[-1] if self.layers else None

    def add(self, at: int, item: Any) -> None:
        if self.ended:
            self.reader.refuse(at, "nothing may follow the votes, LI or LAST of a network")
        if not isinstance(item, FC):
            self.require_no_drop()
        match item:
            case _Norm():
                last = self.last
                if not isinstance(last, Conv) or last.norm or last.neurons or last.pool:
                    self.reader.refuse(at, "BN must follow a convolution")
                self.layers[-1] = replace(last, norm=True)
            case _Drop():
                self.require_outermost(at, "DP")
                self.drop = _ItemAt(at, item)
            case FC():
                self.fc(at, item)
            case Neurons():
                self.neurons(at, item)
            case Pool():
                self.pool(at, item)
            case Readout():
                if not isinstance(self.last, FC) or self.last.neurons is not None:
                    self.reader.refuse(at, f"{item.name} reads an FC layer without neurons: it must follow one")
                self.layers.append(item)
                self.ended = True
            case _:
                if self.flat:
                    self.reader.refuse(at, f"{getattr(item, 'combination', item)} must come before the first FC layer")
                self.layers.append(item)

    def fc(self, at: int, item: FC) -> None:
        self.require_outermost(at, "an FC layer")
        if isinstance(self.last, FC) and self.last.neurons is None:
            before = f"FC{self.last.features} before it"
            self.reader.refuse(at, f"{before} has no neurons: only the last layer may be a readout")
        self.layers.append(replace(item, dropout=self.drop.part.p if self.drop else 0.0))
        self.drop, self.flat = None, True

    def neurons(self, at: int, item: Neurons) -> None:
        if isinstance(self.last, (Conv, FC, Residual)) and self.last.neurons is None:
            self.layers[-1] = replace(self.last, neurons=item)
        elif self.flat:
            self.reader.refuse(at, "neurons must follow an FC layer")
        else:
            self.layers.append(item)

    def pool(self, at: int, item: Pool) -> None:
        last = self.last
        if self.flat:
            self.layers.append(self.votes(at, item))
            self.ended = True
        elif isinstance(last, Conv) and last.neurons is not None and last.pool is None and item.kernel is not None:
            self.layers[-1] = replace(last, pool=item)
        else:
            self.layers.append(item)

    def votes(self, at: int, pool: Pool) -> Votes:
        """The voting layer, from a pool behind the last FC layer."""
        k, last, refuse = pool.kernel, self.last, self.reader.refuse
        if pool.kind != "AP" or not isinstance(k, int) or pool.stride != k or pool.padding:
            refuse(at, "after FC layers only the votes may follow, such as APk10s10 for 10 neurons a class")
        if not isinstance(last, FC) or last.neurons is None:
            refuse(at, "the votes must follow neurons: FC100-PLIF-APk10s10; a readout FC10 needs none")
        if last.features % k:
            refuse(at, f"the votes do not divide: the {last.features} of FC{last.features} are no multiple of {k}")
        return Votes(k)

    def finish(self) -> list[NotationLayer]:
        self.require_no_drop()
        for layer in self.layers:
            if isinstance(layer, FC) and layer.recurrent and layer.neurons is None:
                self.reader.refuse(len(self.reader.text), f"{layer} needs neurons, whose spikes return to it")
        if self.outermost and not self.flat:
            end = len(self.reader.text)
            self.reader.refuse(end, "a network ends with FC layers: add -FC10, or -FC100-PLIF-APk10s10")
        return self.layers

    def require_no_drop(self) -> None:
        if self.drop is not None:
            self.reader.refuse(self.drop.at, "DP must stand before an FC layer")

    def require_outermost(self, at: int, noun: str) -> None:
        if not self.outermost:
            self.reader.refuse(at, f"{noun} cannot be a part of a residual block")
