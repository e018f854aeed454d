"""Events in text: a line for each, its numbers separated by commas, semicolons, tabs or spaces."""

import re
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from plif_lightning.events.formats.columns import columns_of, order_of, require_plausible_seconds, stands_for, units_of
from plif_lightning.events.formats.decoding import LONGEST_HEADER, Decoder, named_sensor, no_events, read_whole
from plif_lightning.events.recording import Recording, RecordingError

# Events from which columns without a header, and the unit of times, are told.
_FIRST = 1000
# Events with whole times after which a stream takes them for us, if its header says no unit.
_WHOLE = 20
# Longest line [bytes].
_LONGEST_LINE = 2**14
_SPLIT = re.compile(r'[\s"]*[,;][\s"]*|[\s"]+')
_COLUMNS = "txyp"
_BOM = b"\xef\xbb\xbf"


def _decoded(raw: bytes) -> str:
    """A line of text in UTF-8, or in Latin-1, in which older programs write the micro sign."""
    try:
        return raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return raw.decode("latin-1").strip()


def _fields(line: str) -> list[str]:
    """Fields of a line, as `lines.parse` sees them, without empty ones at its end."""
    fields = _SPLIT.split(line.strip(' \t\r\n"'))
    while fields and not fields[-1]:
        fields.pop()
    return fields


def _number(field: str) -> float | None:
    """Finite number in a field, true and false included; None if it is none."""
    if field.lower() in ("true", "false"):
        return float(field.lower() == "true")
    try:
        number = float(field)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _names(line: str) -> list[str]:
    """Names of columns in a header line. Commas separate them where there are any, as in `t [us], x, y, p`."""
    line = line.lstrip("#% ").strip()
    fields = re.split(r"[,;\t]", line) if re.search(r"[,;\t]", line) else re.split(r"\s+(?![\[(])", line)
    return [field.strip().strip('"').strip() for field in fields]


class TextDecoder(Decoder):
    """Decode events in text; see `read_text`.

    Args:
        name: name of the source, for messages.
    """

    title = "text of events"

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._line = 0  # lines that were read
        self._off: set[int] = set()  # polarities beside 1 that were seen
        self._unit_of_t: float | None = None  # us
        self._targets: NDArray[np.int64] | None = None  # for each field: 0 to 3 for t, x, y, p; -1 for none

    def decode(self, data: bytes) -> Recording:
        found = super().decode(data)
        if self.begun and len(self.pending) > _LONGEST_LINE:
            raise RecordingError(f"{self.name}, line {self._line + 1} is longer than an event.")
        return found

    @property
    def _unit(self) -> str:
        return f"line {self._line + 1}"

    def finish(self) -> Recording:
        return self.flush()

    def flush(self) -> Recording:
        """Events of the last lines: of a short text, and of a line without a line break."""
        rest, self.pending = self.pending + b"\n", b""
        at = 0
        if not self.begun:
            at, self.begun = self._header(rest, final=True) or 0, True
            if self._targets is None:
                return no_events()
        return self._events(rest, at)[0]

    @property
    def left(self) -> str:
        """Message about a line that is not complete; empty if there is none."""
        return f"{self.name} ends within {self._unit}." if self.begun and self.pending else ""

    def _header(self, data: bytes, final: bool) -> int | None:
        """Read the lines before the first event, and tell the columns and the unit of times from the first events."""
        if b"\0" in data[:LONGEST_HEADER]:
            raise RecordingError(f"{self.name} is no text. The file is damaged or another file.")
        if final and b"\r" in data.strip() and b"\n" not in data.strip():
            raise RecordingError(f"{self.name}: its lines end in CR alone; write it with line feeds.")
        self.sensor, self._targets, self._unit_of_t = None, None, None  # of a call that saw less
        self._comments: list[list[str]] = []
        at, number, start = 0, 0, None
        rows: list[list[str]] = []
        while len(rows) < _FIRST:
            end = data.find(b"\n", at)
            if end < 0 and (not final or at >= len(data)):
                break
            line = _decoded(data[at : end if end >= 0 else len(data)])
            number += 1
            if start is None and self._is_event(line, number):
                start, self._line = at, number - 1
            if start is not None and line and line[0] not in "#%":
                rows.append(_fields(line))
            at = end + 1 if end >= 0 else len(data)
        if start is None:
            return len(data) if final else None
        start = start or len(_BOM) * data.startswith(_BOM)
        return start if self._tell(rows, final or len(rows) >= _FIRST) else None

    def _is_event(self, line: str, number: int) -> bool:
        """True for an event; otherwise read what the line says about the columns and the sensor."""
        if not line or line.lower().startswith("sep="):  # which Excel writes
            return False
        if geometry := re.fullmatch(r"[#%]\s*geometry[: ]\s*(\d{1,9})\s*[,x ]\s*(\d{1,9})", line):
            self.sensor = named_sensor(int(geometry[2]), int(geometry[1]), f"{self.name}, line {number}")
            return False
        if line[0] in "#%":
            self._comments.append(_names(line))
            return False
        values = [_number(field) for field in _fields(line)]
        if None in values and self._targets is None:
            self._read_names(_names(line), f"{self.name}, line {number}", line)
            return False
        if len(values) == 2 and self.sensor is None and self._targets is None:
            width, height = (value or 0 for value in values)  # as in the files of E2VID
            if width % 1 or height % 1:
                raise RecordingError(f"{self.name}, line {number}: {line[:60]!r} is no event of four numbers.")
            self.sensor = named_sensor(int(height), int(width), f"{self.name}, line {number}")
            return False
        return True

    def _read_names(self, names: list[str], where: str, line: str) -> None:
        """Take the columns from their names.

        Raises:
            RecordingError: they are not the names of t, x, y and p.
        """
        found = columns_of(names, where)
        if len(found) < 4:
            raise RecordingError(f"{where}: {line[:60]!r} is neither an event nor the names of t, x, y and p.")
        places = {name: _COLUMNS.index(key) for key, (name, _) in found.items()}
        self._targets = np.array([places.get(name, -1) for name in names], np.int64)
        self._unit_of_t = units_of(found)

    def _read_comment(self, fields: int) -> None:
        """Take the columns from the last comment that names as many as an event has, if there is one."""
        for names in reversed(self._comments):
            with suppress(RecordingError):
                if len(names) == fields:
                    self._read_names(names, self.name, "")
                    return

    def _tell(self, rows: list[list[str]], enough: bool) -> bool:
        """Tell columns and unit from the first events, where no header named them. False if more events are needed.

        Raises:
            RecordingError: there are not four columns, or they cannot be told apart.
        """
        if self._targets is None:
            self._read_comment(len(rows[0]))
        if self._targets is not None and (
            len(rows[0]) > len(self._targets) or (self._targets[len(rows[0]) :] >= 0).any()
        ):
            raise RecordingError(
                f"{self.name}, line {self._line + 1}: {' '.join(rows[0])[:60]!r} has {len(rows[0])} fields, and the "
                f"header names {len(self._targets)} columns."
            )
        if self._targets is None:
            if not enough:
                return False
            if len(rows[0]) != 4:
                raise RecordingError(
                    f"{self.name}: its lines have {len(rows[0])} numbers. Without names of the columns in a header, "
                    "such as `t,x,y,p`, four are expected."
                )
            same = [[_number(field) for field in row] for row in rows if len(row) == 4]
            table = np.array([row for row in same if None not in row], np.float64)
            targets = np.empty(4, np.int64)
            targets[list(order_of(table, self.name))] = range(4)
            self._targets = targets
        if self._unit_of_t is None:
            place = list(self._targets).index(0)
            written = [row[place] for row in rows if len(row) > place]
            times = [value for text in written if (value := _number(text)) is not None]
            if any(value % 1 for value in times):
                require_plausible_seconds(len(times), max(times) - min(times), self.name)
                self._unit_of_t = 1e6
            elif enough or sum(text.lstrip("+-").isdecimal() for text in written) >= _WHOLE:
                self._unit_of_t = 1.0
        return self._unit_of_t is not None

    def _events(self, data: bytes, at: int) -> tuple[Recording, int]:
        from plif_lightning.events.formats.lines import parse

        assert self._targets is not None
        end = data.rfind(b"\n") + 1
        if end <= at:
            return no_events(), at
        text = np.frombuffer(data, np.uint8, end - at, at)
        rows = int(np.count_nonzero(text == 10))
        # Times as digits and a power of ten: exact in us, whatever their unit.
        power = round(np.log10(self._unit_of_t or 1.0))
        t, x, y, p = np.empty(rows, np.int64), *(np.empty(rows, np.int32) for _ in range(2)), np.empty(rows, np.int8)
        n, bad = parse(text, self._targets, power, t, x, y, p)
        if bad >= 0:
            line = bytes(text).split(b"\n")[bad].decode("utf-8", "replace").strip()
            raise RecordingError(
                f"{self.name}, line {self._line + bad + 1}: {line[:60]!r} is no event of {len(self._targets)} fields"
                + (", or its time has a fraction of a microsecond." if power == 0 else ".")
            )
        self._line += rows
        p = p[:n]
        self._off |= set(np.unique(p).tolist()) - {1}
        if len(self._off) > 1:
            raise RecordingError(f"{self.name}: its polarities are 0 as well as -1; expected 0 and 1, or -1 and 1.")
        return Recording(t[:n], x[:n], y[:n], (p > 0).astype(np.uint8)), end


def is_table(path: str | Path) -> bool:
    """True if a text file begins as events do: with names of columns, or with lines of four numbers."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(2**16)
    except OSError:
        return True  # reading it will say what is wrong
    for raw in start.split(b"\n")[:-1] or [start]:
        line = _decoded(raw)
        if len(stands_for(_names(line))) == 4:
            return True
        if line and line[0] not in "#%":
            fields = _fields(line)
            if len(fields) != 2 or None in map(_number, fields):
                return len(fields) == 4 and None not in map(_number, fields)
    return False


def read_text(path: str | Path) -> Recording:
    """Events of a text file, a line for each: x, y, t and p as numbers.

    A first line may name the columns, in any order and under their usual names (`timestamp,x,y,polarity`); others than
    these four are skipped. Without it there must be four, which are told from their values, see `order_of`. Times are
    us, or seconds if the first lines have fractions; a name may say the unit, such as `t [ns]`. Lines that begin with
    `#` or `%` are comments; `% geometry:1280,720` and a first line of two numbers are the sensor's width and height.

    Raises:
        RecordingError: a line is no event, or the columns cannot be told apart. The message names the line.
    """
    return read_whole(path, TextDecoder(str(path)))
