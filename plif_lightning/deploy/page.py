"""A page for the browser that shows a stream as it runs: one file, which hears of time-steps by server-sent events."""

import base64
import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from types import TracebackType
from typing import Any

import numpy as np

from plif_lightning.errors import UserError

_HOST = "127.0.0.1"
# Least time between two messages to a browser [s]: more than it can draw would only queue up.
_EVERY = 0.05
# A comment keeps the connection open and tells whether the browser is still there [s].
_ALIVE = 5.0
# Time-steps whose votes a browser gets that comes later.
_HISTORY = 500
# Frames are shown with at most so many pixels on a side.
_PIXELS = 128


class DecisionPage:
    """Serve the page to browsers of this machine. Use it as a context manager.

    Args:
        port: port of this machine; 0 for any free one.
        names: names of the classes.
        last: number of steps that votes are the mean of; None for all.

    Attributes:
        address: where the page is.

    Raises:
        UserError: the port is taken or not allowed.
    """

    def __init__(self, port: int, names: Sequence[str], last: int | None = None) -> None:
        self._names, self._last = list(names), last
        self._condition = threading.Condition()
        self._number = 0  # of messages
        self._message: dict[str, Any] = {}
        self._history: deque[tuple[int, list[float]]] = deque(maxlen=_HISTORY)
        self._closed = False
        self.browsers = 0  # that listen
        page = self

        class Handler(BaseHTTPRequestHandler):
            def handle(self) -> None:
                with suppress(ConnectionError, TimeoutError):  # browsers come and go
                    super().handle()

            def do_GET(self) -> None:
                page._answer(self)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's name)
                """Print nothing: the terminal shows the stream."""

        if not 0 <= port < 2**16:
            raise UserError(f"--page must lie in 0..65535, got {port}.")
        try:
            self._server = ThreadingHTTPServer((_HOST, port), Handler)
        except OSError as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"port {port} of this machine cannot be used ({reason}): pass another --page.") from error
        self._server.daemon_threads = True
        self.address = f"http://{_HOST}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "DecisionPage":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Tell the browsers that the stream has ended, and stop serving."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        time.sleep(2 * _EVERY)
        self._server.shutdown()
        self._server.server_close()

    def show(
        self, step: int, votes: Sequence[float], frame: Any, rates: dict[str, float], milliseconds: Sequence[float]
    ) -> None:
        """Take over the state after a time-step.

        Args:
            step: number of time-steps.
            votes: mean votes.
            frame: counts of the step's events [2, H, W].
            rates: firing rate of each layer.
            milliseconds: time that each measured step took.
        """
        recent = sorted(milliseconds[-50:])
        with self._condition:
            self._history.append((step, [round(vote, 4) for vote in votes]))
            self._number += 1
            self._message = {
                "step": step,
                "votes": self._history[-1][1],
                "rates": rates,
                "ms": round(recent[len(recent) // 2], 2) if recent else None,
                "frame": np.asarray(frame),
            }
            self._condition.notify_all()

    def _answer(self, request: Any) -> None:
        # A page of the net may have given its own name this machine's address.
        if str(request.headers.get("Host")).partition(":")[0] not in (_HOST, "localhost"):
            request.send_error(HTTPStatus.FORBIDDEN)
        elif request.path == "/":
            content = files("plif_lightning.deploy").joinpath("page.html").read_bytes()
            request.send_response(HTTPStatus.OK)
            request.send_header("Content-Type", "text/html; charset=utf-8")
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content)
        elif request.path == "/stream":
            request.send_response(HTTPStatus.OK)
            request.send_header("Content-Type", "text/event-stream")
            request.send_header("Cache-Control", "no-store")
            request.end_headers()
            self._send(request.wfile)
        else:
            request.send_error(HTTPStatus.NOT_FOUND)

    def _send(self, out: Any) -> None:
        """Send the history, and then the newest state whenever there is one."""
        with self._condition:
            self.browsers += 1
            seen, message = self._number, self._message
            first = {"names": self._names, "last": self._last, "history": list(self._history)}
        self._write(out, "begin", first)
        if message:
            self._write(out, "step", _as_json(message))
        while True:
            number, message, closed = self._next(seen)
            if number != seen:
                self._write(out, "step", _as_json(message))
            if closed:
                self._write(out, "end", {})
                return
            if number == seen:
                out.write(b": alive\n\n")
                out.flush()
            seen = number
            time.sleep(_EVERY)

    def _next(self, seen: int) -> tuple[int, dict[str, Any], bool]:
        """Wait for a message after number `seen`. Returns the newest one, its number, and whether the stream ended."""
        with self._condition:
            self._condition.wait_for(lambda: self._number != seen or self._closed, _ALIVE)
            return self._number, self._message, self._closed

    @staticmethod
    def _write(out: Any, kind: str, data: dict[str, Any]) -> None:
        out.write(f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode())
        out.flush()


def _as_json(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its frame as bytes in base64, OFF before ON."""
    counts = message["frame"]
    while max(counts.shape[1:]) > _PIXELS:
        padded = np.pad(counts, [(0, 0), *((0, side % 2) for side in counts.shape[1:])])
        counts = padded.reshape(2, padded.shape[1] // 2, 2, padded.shape[2] // 2, 2).sum((2, 4))
    shown = np.minimum(counts, 255).astype(np.uint8)
    events = int(message["frame"].sum())
    frame = {"height": shown.shape[1], "width": shown.shape[2], "data": base64.b64encode(shown.tobytes()).decode()}
    return {**message, "frame": frame, "events": events}
