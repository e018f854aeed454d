"""The page of a stream: what it serves, and what a browser shows."""

import json
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest

from plif_lightning.deploy.page import DecisionPage
from plif_lightning.errors import UserError
from tests.conftest import PATIENCE

NAMES = ["hand clap", "<b>wave</b>", "roll"]


def show(page, step):
    frame = np.zeros((2, 480, 640), np.uint8)
    frame[1, step, 3] = 200
    page.show(step, [0.1 * step, 0.5, 0.0], frame, {"conv1": 0.125}, [1.0, 3.0, 2.0])


def messages(address, count):
    """(kind, data) of the first messages of the stream."""
    found, kind = [], ""
    with urllib.request.urlopen(f"{address}/stream", timeout=PATIENCE) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        while len(found) < count:
            line = answer.readline().decode().rstrip("\n")
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                found.append((kind, json.loads(line[6:])))
    return found


def test_what_a_browser_hears():
    with DecisionPage(0, NAMES) as page:
        for step in (1, 2, 3):
            show(page, step)
        (first, begin), (second, step) = messages(page.address, 2)
        assert (first, second) == ("begin", "step")
        assert begin["names"] == NAMES
        assert [s for s, _ in begin["history"]] == [1, 2, 3]
        assert step["step"] == 3
        assert step["votes"] == [0.3, 0.5, 0.0]
        assert step["ms"] == 2.0
        assert step["events"] == 200
        assert (step["frame"]["height"], step["frame"]["width"]) == (120, 80) or step["frame"]["width"] <= 128
        with urllib.request.urlopen(page.address) as answer:
            assert b"<!doctype html>" in answer.read()
        elsewhere = urllib.request.Request(page.address, headers={"Host": "evil.example"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(elsewhere)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{page.address}/etc/passwd")
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(page.address, timeout=1)


def test_a_browser_is_told_of_the_end():
    found = []
    with DecisionPage(0, NAMES) as page:
        show(page, 1)
        listener = threading.Thread(target=lambda: found.extend(messages(page.address, 4)))
        listener.start()
        import time

        end = time.monotonic() + PATIENCE
        while not page.browsers and time.monotonic() < end:
            time.sleep(0.01)
        show(page, 2)
    listener.join(PATIENCE)
    assert [kind for kind, _ in found][-1] == "end"


def test_a_port_that_is_taken_is_named():
    with DecisionPage(0, NAMES) as page:
        port = int(page.address.rpartition(":")[2])
        with pytest.raises(UserError, match=rf"port {port} of this machine cannot be used .*: pass another --page"):
            DecisionPage(port, NAMES)


def test_in_a_browser(browser):
    with DecisionPage(0, NAMES) as page:
        for step in range(1, 6):
            show(page, step)
        errors = []
        window = browser.new_page()
        window.on("pageerror", lambda error: errors.append(str(error)))
        window.goto(page.address)
        window.wait_for_function("document.getElementById('decision').textContent !== 'waiting for events'")
        assert "step 5" in window.text_content("#numbers")
        assert window.text_content("#decision") in NAMES
        assert "2 ms a step" in window.text_content("#numbers")
        assert window.eval_on_selector_all("#votes tr", "rows => rows.map(r => r.cells[0].textContent)") == NAMES
        show(page, 6)
        window.wait_for_function("document.getElementById('numbers').textContent.includes('step 6')")
        assert window.text_content("#decision") == "hand clap"
    window.wait_for_function("document.title === 'Stream, ended'")
    assert not errors
    window.close()
