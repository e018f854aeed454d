"""Read pieces of the notation, with errors that point at the place."""

import re
from collections.abc import Iterator
from typing import Any, NoReturn

from plif_lightning.errors import UserError
from plif_lightning.structure.sizes import Size

ArgumentValue = float | int | bool | str | None


class Reader:
    """A text and the place that is read next."""

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

    def layers(self, is_outermost: bool) -> Any:
        """Layers in sequence, up to what is none; defined with the whole grammar, in `notation`."""
        raise NotImplementedError

    def got(self) -> str:
        """What stands at the place, for an error."""
        return repr(self.text[self.at]) if self.at < len(self.text) else "the end"

    def take(self, sign: str) -> bool:
        there = self.text.startswith(sign, self.at)
        self.at += len(sign) if there else 0
        return there

    def require(self, sign: str, expected: str) -> None:
        if not self.take(sign):
            self.refuse(self.at, f"expected {expected}, got {self.got()}")

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

    def probability(self) -> float:
        start = self.at
        value = self.value()
        self.require(")", ")")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            self.refuse(start, "the drop probability must be at least 0 and below 1")
        return float(value)

    def arguments(self) -> tuple[tuple[str, ArgumentValue], ...]:
        """Arguments in parentheses; none if there are no parentheses."""
        return tuple(self._arguments()) if self.take("(") else ()

    def _arguments(self) -> Iterator[tuple[str, ArgumentValue]]:
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
            self.refuse(start, "the value must be a number, true, false, null or a name without quotes")
        return text


def written_value(value: ArgumentValue) -> str:
    """A value as the notation writes it."""
    names = {True: "true", False: "false", None: "null"}
    return names[value] if isinstance(value, bool) or value is None else str(value)
