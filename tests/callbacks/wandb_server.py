"""A minimal W&B server for sweeps, agents and runs: it serves the points of a grid and stores what it receives."""

import http.server
import itertools
import json
import re
import threading
from collections import defaultdict
from typing import Any

import yaml


class WandbServer:
    """Server on the loopback interface; a context manager.

    Attributes:
        url: value for WANDB_BASE_URL.
        configs: latest configuration of each run, by name.
        histories: rows of each run.
        exit_codes: exit code of each run that has ended.
        output: console lines of each run.
        preempting: runs that are to be handed out again if they fail.
        unknown: unexpected operations.
    """

    def __init__(self) -> None:
        self.configs: dict[str, dict[str, Any]] = {}
        self.histories: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        self.exit_codes: dict[str, int] = {}
        self.output: dict[str, list[str]] = defaultdict(list)
        self.preempting: set[str] = set()
        self.groups: dict[str, Any] = {}
        self.tags: dict[str, Any] = {}
        self.files: set[str] = set()
        self.unknown: list[str] = []
        self._sweep: dict[str, Any] = {}
        self._points: list[dict[str, Any]] = []
        self._dealt = 0
        self._lock = threading.Lock()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *arguments: Any) -> None:
                """Log nothing."""

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                with server._lock:
                    answer = server.answer(self.path, body)
                text = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = _answer  # noqa: N815

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def rows(self, name: str) -> list[dict[str, Any]]:
        return [row for _, row in sorted(self.histories[name].items())]

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if stream := re.search(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", path):
            return self._stream(stream[1], json.loads(body))
        if path.startswith("/graphql"):
            request = json.loads(body)
            return {"data": self._graphql(request.get("query", ""), request.get("variables") or {})}
        if path.startswith("/storage/"):
            self.files.add(path.removeprefix("/storage/"))
        return {}

    def _stream(self, name: str, sent: dict[str, Any]) -> dict[str, Any]:
        for file, content in (sent.get("files") or {}).items():
            for i, line in enumerate(content.get("content", []), start=content.get("offset", 0)):
                if file == "wandb-history.jsonl":
                    self.histories[name][i] = json.loads(line)
                elif file == "output.log":
                    self.output[name].append(line)
        if sent.get("preempting"):
            self.preempting.add(name)
        if sent.get("complete"):
            self.exit_codes[name] = sent.get("exitcode", 0)
        return {"limits": {}}

    def _graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        named = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = named[1] if named else "?"
        project = {
            "id": "P",
            "name": variables.get("projectName") or "plif_lightning",
            "entity": {"id": "E", "name": "e"},
        }
        answers = {
            "Viewer": lambda: {
                "viewer": {
                    "id": "U",
                    "entity": "e",
                    "username": "u",
                    "email": "u@e",
                    "flags": "{}",
                    "teams": {"edges": []},
                }
            },
            "GetDefaultEntity": lambda: {"viewer": {"id": "U", "entity": "e"}},
            "Runs": lambda: self._runs(project),
            "RunHistoryKeys": lambda: {"project": {"run": self._described(variables["name"])}},
            "RunParquetHistory": lambda: {"project": {"run": {"parquetHistory": self._history(variables["runName"])}}},
            "UpsertSweep": lambda: self._upsert_sweep(variables, project),
            "SweepWithRuns": lambda: {"project": {"sweep": {**self._sweep, "runs": {"edges": []}}}},
            "Sweep": lambda: {"project": {"sweep": {**self._sweep, "runs": {"edges": []}}}},
            "CreateAgent": lambda: {"createAgent": {"agent": {"id": "A"}}},
            "Heartbeat": lambda: {"agentHeartbeat": {"agent": {"id": "A"}, "commands": json.dumps(self._commands())}},
            "UpsertBucket": lambda: self._upsert_run(variables, project),
            "CreateRunFiles": lambda: {
                "createRunFiles": {
                    "runID": "R",
                    "uploadHeaders": [],
                    "files": [{"name": f, "uploadUrl": f"{self.url}/storage/{f}"} for f in variables.get("files", [])],
                }
            },
            "RunResumeStatus": lambda: {"model": {**project, "bucket": None}},
        }
        if operation in answers:
            return answers[operation]()
        self.unknown.append(operation)
        return {}

    def _upsert_sweep(self, variables: dict[str, Any], project: dict[str, Any]) -> dict[str, Any]:
        config = yaml.safe_load(variables["config"])
        self._sweep = {
            "id": "S",
            "name": "sweep1",
            "state": "RUNNING",
            "method": "grid",
            "config": variables["config"],
            "bestLoss": None,
            "createdAt": "2026-01-01T00:00:00Z",
            "heartbeatAt": None,
            "updatedAt": None,
            "description": "",
            "controller": None,
            "scheduler": None,
            "runCount": 0,
            "priorRuns": {"edges": []},
        }
        self._program = config["program"]
        names = list(config["parameters"])
        values = [p.get("values", [p.get("value")]) for p in config["parameters"].values()]
        self._points = [dict(zip(names, point, strict=True)) for point in itertools.product(*values)]
        return {"upsertSweep": {"sweep": {**self._sweep, "project": project}, "configValidationWarnings": []}}

    def _commands(self) -> list[dict[str, Any]]:
        running = self._dealt - len(self.exit_codes)
        if running > 0:
            return []
        again = [name for name in self.preempting if self.exit_codes.get(name)]
        if again:
            del self.exit_codes[again[0]]
            return [self._command("resume", int(again[0].removeprefix("run")))]
        if self._dealt == len(self._points):
            return [{"type": "exit"}]
        self._dealt += 1
        return [self._command("run", self._dealt)]

    def _command(self, kind: str, number: int) -> dict[str, Any]:
        args = {key: {"value": value} for key, value in self._points[number - 1].items()}
        return {"type": kind, "run_id": f"run{number}", "program": self._program, "args": args}

    def _upsert_run(self, variables: dict[str, Any], project: dict[str, Any]) -> dict[str, Any]:
        name = variables.get("name") or "run"
        inserted = name not in self.configs
        if variables.get("config"):
            self.configs[name] = {k: v.get("value") for k, v in json.loads(variables["config"]).items()}
        self.configs.setdefault(name, {})
        for kept, key in ((self.groups, "groupName"), (self.tags, "tags")):
            if variables.get(key) is not None:
                kept[name] = variables[key]
        bucket = {
            "id": f"id-{name}",
            "name": name,
            "displayName": name,
            "description": None,
            "config": None,
            "sweepName": "S" if self._sweep else None,
            "project": project,
            "historyLineCount": 0,
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _runs(self, project: dict[str, Any]) -> dict[str, Any]:
        edges = [{"node": self._described(name), "cursor": name} for name in self.configs]
        page = {"endCursor": None, "hasNextPage": False}
        runs = {"edges": edges, "pageInfo": page}
        return {"project": {**project, "internalId": "1", "runCount": len(edges), "readOnly": False, "runs": runs}}

    def _described(self, name: str) -> dict[str, Any]:
        """A run as the API lists it."""
        plain = {"group": None, "jobType": None, "commit": None, "readOnly": False, "sweepName": None, "tags": []}
        summary = {key: value for row in self.rows(name) for key, value in row.items()}
        return {
            **plain,
            "id": f"id-{name}",
            "name": name,
            "displayName": name,
            "state": "finished",
            "projectId": "1",
            "config": json.dumps({key: {"value": value} for key, value in self.configs[name].items()}),
            "summaryMetrics": json.dumps(summary),
            "systemMetrics": "{}",
            "createdAt": "2026-01-01T00:00:00Z",
            "heartbeatAt": "2026-01-01T00:00:00Z",
            "description": "",
            "notes": "",
            "defaultColorIndex": "0",
            "user": {"name": "u", "username": "u"},
            "historyLineCount": len(self.rows(name)),
            "historyKeys": {"lastStep": max((row["_step"] for row in self.rows(name)), default=-1), "keys": {}},
        }

    def _history(self, name: str) -> dict[str, Any]:
        """All rows are live: this server exports none to Parquet, which the client needs to read any."""
        return {"parquetUrls": [], "liveData": self.rows(name)}
