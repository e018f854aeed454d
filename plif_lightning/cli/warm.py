"""Start runs from a process that has imported everything: each is a fork of it, so it begins at once and as fresh.

`python -m plif_lightning.cli.warm` reads a JSON object for each run from its standard input (arguments and the file for
its output) and writes one for each beginning ("started": pid) and end ("ended": pid, "status": exit status).
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

# Most of what `fit` imports; a run imports the rest.
_MODULES = (
    "plif_lightning.cli.lightning",
    "plif_lightning.callbacks.plots",
    "plif_lightning.data",
    "plif_lightning.kernels.cpu",
    "plif_lightning.training.task",
)


def serve() -> None:
    """Fork a run for each request until the input ends."""
    requests, answers = sys.stdin, sys.stdout
    # Ctrl-C reaches the runs themselves, and the sweep, which closes the input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _import_everything()
    print(json.dumps({"ready": _may_fork()}), file=answers, flush=True)
    lock = threading.Lock()
    for line in requests:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run(request["arguments"], Path(request["output"]))
        with lock:
            print(json.dumps({"started": pid}), file=answers, flush=True)
        threading.Thread(target=_wait, args=(pid, answers, lock), daemon=True).start()


def _import_everything() -> None:
    from plif_lightning.runtime.process import tune_allocator

    tune_allocator()  # before PyTorch, as `main` does
    for module in _MODULES:
        importlib.import_module(module)
    # Register numba's built-in functions, which otherwise costs each run 0.3 s when it loads its first kernel.
    from numba.core.registry import cpu_target

    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()


def _may_fork() -> bool:
    """False on a machine with a GPU, whose driver does not survive a fork."""
    import torch

    return not torch.cuda.is_available()


def _wait(pid: int, answers: IO[str], lock: threading.Lock) -> None:
    _, status = os.waitpid(pid, 0)
    with lock:
        print(json.dumps({"ended": pid, "status": os.waitstatus_to_exitcode(status)}), file=answers, flush=True)


def _run(arguments: list[str], output: Path) -> NoReturn:
    """Become a run: its output goes to a file, its signals are a new process's."""
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with output.open("ab", buffering=0) as file, Path(os.devnull).open("rb") as nothing:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            os.dup2(nothing.fileno(), 0)
        from plif_lightning.cli.dispatch import main
        from plif_lightning.runtime import program

        sys.argv = [program.command()[-1], *arguments]
        main(arguments)
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


# How long the server may take to end [s].
_PATIENCE = 10


class WarmStart:
    """Starts runs of the command line from a process that is kept warm, or each in a new process where that cannot be.

    Args:
        environment: environment of all runs.
        warm: False to start each in a new process.
    """

    def __init__(self, environment: Mapping[str, str], warm: bool = True) -> None:
        self.environment = dict(environment)
        self._server: subprocess.Popen[str] | None = None
        self._listener: threading.Thread | None = None
        self._cold = not (warm and hasattr(os, "fork"))
        self._condition = threading.Condition()
        self._starting = threading.Lock()
        self._started: list[int] = []
        self._ended: dict[int, int] = {}

    def _ready(self) -> bool:
        """Start the server before the first run. False if it cannot be had."""
        if self._cold or self._server is not None:
            return not self._cold
        command = [sys.executable, "-m", "plif_lightning.cli.warm"]
        root = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join([root, *filter(None, [self.environment.get("PYTHONPATH")])])
        server = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**self.environment, "PYTHONPATH": paths},
        )
        assert server.stdout is not None
        answer = server.stdout.readline()
        self._cold = not (answer and json.loads(answer).get("ready"))
        if self._cold:
            server.terminate()
            server.communicate()
            return False
        self._server = server
        self._listener = threading.Thread(target=self._listen, args=(server.stdout,), daemon=True)
        self._listener.start()
        return True

    def _listen(self, answers: IO[str]) -> None:
        """Collect the server's answers."""
        for line in answers:
            answer = json.loads(line)
            with self._condition:
                if "started" in answer:
                    self._ended.pop(answer["started"], None)  # of a process that had this number before
                    self._started.append(answer["started"])
                else:
                    self._ended[answer["ended"]] = answer["status"]
                self._condition.notify_all()
        with self._condition:
            self._cold = True  # it was killed: later runs start in processes of their own
            self._condition.notify_all()

    def start(self, command: Sequence[str], arguments: Sequence[str], output: Path) -> "Started":
        """Start a run; `command` is for a new process, `arguments` are those of the command line alone."""
        with self._starting:
            if self._ready() and self._server is not None and self._server.stdin is not None:
                with contextlib.suppress(OSError):
                    request = {"arguments": list(arguments), "output": str(output.absolute())}
                    print(json.dumps(request), file=self._server.stdin, flush=True)
                    with self._condition:
                        self._condition.wait_for(lambda: self._started or self._cold)
                        if self._started:
                            return _Forked(self._started.pop(), self)
        with output.open("ab") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self.environment
            )
        return _Process(process)

    def close(self) -> None:
        """End the server; its runs are not touched."""
        server, self._server = self._server, None
        if server is None or server.stdin is None:
            return
        with contextlib.suppress(OSError):
            server.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_PATIENCE)
        if server.stdout is not None and self._listener is not None:
            self._listener.join(_PATIENCE)
            server.stdout.close()


class Started:
    """A run that was started."""

    pid: int

    def terminate(self) -> None:
        """Send SIGTERM to the run, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout: float | None = None) -> int | None:
        """Exit status; None if the run has not ended after `timeout` seconds."""
        raise NotImplementedError


class _Process(Started):
    def __init__(self, process: "subprocess.Popen[Any]") -> None:
        self._process, self.pid = process, process.pid

    def terminate(self) -> None:
        self._process.terminate()

    def wait(self, timeout: float | None = None) -> int | None:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None


class _Forked(Started):
    def __init__(self, pid: int, server: WarmStart) -> None:
        self.pid, self._of = pid, server

    def terminate(self) -> None:
        with self._of._condition:
            if self.pid in self._of._ended:
                return
        super().terminate()

    def wait(self, timeout: float | None = None) -> int | None:
        with self._of._condition:
            known = self._of._condition.wait_for(lambda: self.pid in self._of._ended or self._of._cold, timeout)
            if self.pid in self._of._ended:
                return self._of._ended[self.pid]
        if not known:
            return None
        # The server is gone, but its runs may live on. How they end is not known; a run's folder says if it finished.
        end = None if timeout is None else time.monotonic() + timeout
        while _is_alive(self.pid):
            if end is not None and time.monotonic() > end:
                return None
            time.sleep(0.2)
        return -signal.SIGKILL


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    serve()
