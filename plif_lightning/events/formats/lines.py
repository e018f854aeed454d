"""Parse lines of numbers: the compiled part of `text`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from plif_lightning.runtime.compiled import compiled

Array = NDArray[Any]
# Letters of true and false in five bits each.
_TRUE = ((20 * 32 + 18) * 32 + 21) * 32 + 5
_FALSE = (((6 * 32 + 1) * 32 + 12) * 32 + 19) * 32 + 5
# Digits that fit into an int64.
_DIGITS = 18


@compiled
def _scaled(digits: Any, power: int, whole: bool) -> tuple[Any, bool]:
    """digits * 10^power, rounded; False if it does not fit, or if it has a fraction and must be whole."""
    while power > 0 and digits != 0:
        if abs(digits) > 922337203685477580:
            return 0, False
        digits *= 10
        power -= 1
    if power < 0:
        if power < -_DIGITS:
            return 0, digits == 0 or not whole
        unit = np.int64(1)
        for _ in range(-power):
            unit *= 10
        quotient = digits // unit
        rest = digits - quotient * unit
        if rest and whole:
            return 0, False
        return quotient + (1 if 2 * rest >= unit else 0), True
    return digits, True


@compiled
def parse(text: Array, targets: Array, time_power: int, t: Array, x: Array, y: Array, p: Array) -> tuple[int, int]:
    """Parse whole lines into columns.

    Args:
        text: bytes, uint8, that end with a line break.
        targets: for each field of a line, 0 to 3 for t, x, y and p, or -1 to skip it.
        time_power: power of ten of the unit of times [us]. Of 0, times must be whole.
        t: times [us], filled. So are x, y and p, which is -1, 0 or 1.

    Returns:
        Number of events, and the first line that is none; -1 if all are. Empty lines, also of commas, and comments are
        skipped.
    """
    n, line, at, size = 0, 0, 0, len(text)
    fields = len(targets)
    while at < size:
        field = 0
        good = True
        comment = False
        while True:
            c = text[at]
            commas = 0
            while c == 32 or c == 9 or c == 44 or c == 59 or c == 13 or c == 34:  # separators and quotes
                if c == 44 or c == 59:
                    commas += 1
                at += 1
                c = text[at]
            # Blanks may repeat; a comma behind another one, or that begins a line, ends an empty field.
            first, last = field == 0, c == 10
            if (commas > 1 or (commas == 1 and first != last)) and not (first and last):
                for _ in range(commas if first or last else commas - 1):
                    if field < fields:
                        good = good and targets[field] < 0
                        field += 1
                    elif not last:  # at the end of a line they are no fields
                        field += 1
            if c == 10:
                at += 1
                break
            if field == 0 and (c == 35 or c == 37):  # a comment
                comment = True
            if not comment and field < fields and targets[field] < 0:  # any text
                while not (c == 10 or c == 32 or c == 9 or c == 44 or c == 59 or c == 13 or c == 34):
                    at += 1
                    c = text[at]
                field += 1
                continue
            # one number: sign, digits, point, digits, exponent
            negative = c == 45
            if c == 45 or c == 43:
                at += 1
                c = text[at]
            digits: Any = np.int64(0)
            kept, power, seen, point = 0, 0, 0, False
            while (48 <= c <= 57) or (c == 46 and not point):
                if c == 46:
                    point = True
                else:
                    seen += 1
                    if kept < _DIGITS:
                        digits = digits * 10 + np.int64(c - 48)
                        if digits:
                            kept += 1
                        if point:
                            power -= 1
                    elif not point:
                        power += 1
                at += 1
                c = text[at]
            if seen and (c == 101 or c == 69):  # e
                at += 1
                c = text[at]
                down = c == 45
                if c == 45 or c == 43:
                    at += 1
                    c = text[at]
                exponent: Any = 0
                places = 0
                while 48 <= c <= 57:
                    if exponent < 1000:
                        exponent = exponent * 10 + np.int64(c - 48)
                    places += 1
                    at += 1
                    c = text[at]
                power += -exponent if down else exponent
                good = good and places > 0
            elif not seen:
                # true and false
                word, letters = np.int64(0), 0
                while ((65 <= c <= 90) or (97 <= c <= 122)) and letters < 8:
                    word = word * 32 + np.int64(c & 31)
                    letters += 1
                    at += 1
                    c = text[at]
                digits = np.int64(1 if word == _TRUE else 0)
                good = good and word in (_TRUE, _FALSE)
            if not (c == 10 or c == 32 or c == 9 or c == 44 or c == 59 or c == 13 or c == 34):
                good = False
                while text[at] != 10:
                    at += 1
            if negative:
                digits = -digits
            target = targets[field] if field < fields else -1
            field += 1
            if comment or field > fields or target < 0:
                continue
            if target == 0:
                value, fits = _scaled(digits, power + time_power, time_power == 0)
                t[n] = value
            else:
                value, fits = _scaled(digits, power, True)
                fits = fits and -(2**31) <= value < 2**31
                if fits:
                    if target == 1:
                        x[n] = value
                    elif target == 2:
                        y[n] = value
                    else:
                        fits = value == 0 or value == 1 or value == -1
                        p[n] = value
            good = good and fits
        while 0 < field < fields and targets[field] < 0:  # unread columns that a line leaves out at its end
            field += 1
        if comment or field == 0:
            pass
        elif good and field == fields:
            n += 1
        else:
            return n, line
        line += 1
    return n, -1
