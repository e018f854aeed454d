"""`stream` on what grows and on sockets, as users call it."""

import re
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from plif_lightning.cli import main
from tests import writers
from tests.cli.calls import command, refused
from tests.cli.test_deploy import checkpoint, expected  # noqa: F401 (a fixture)
from tests.conftest import PATIENCE, REPOSITORY
from tests.events.test_sockets import aer_bytes, parts_of

SOME = writers.events_of(1000, 0)
GROWING = {
    ".raw": writers.evt3_bytes,
    ".aedat4": partial(writers.aedat4_bytes, packet=100, compression=1),
    ".csv": writers.text_bytes,
    ".txt": partial(writers.text_bytes, separator=" ", unit="s", header=False),
    ".dat": writers.dat_bytes,
    ".aedat": partial(writers.aedat3_bytes, packet=50),
}


@pytest.mark.parametrize("suffix", GROWING)
def test_a_file_of_any_format_that_grows_is_followed(checkpoint, capsys, suffix):  # noqa: F811
    content, file = GROWING[suffix](SOME), Path(f"live{suffix}")
    file.write_bytes(content[:3])

    def grow():
        for first in range(3, len(content), 1777):
            with file.open("ab") as opened:
                opened.write(content[first : first + 1777])

    writer = threading.Thread(target=grow)
    writer.start()
    main(["stream", "--ckpt_path=net.ckpt", f"--file={file}", "--live", "--idle=4", "--events_per_step=200"])
    writer.join()
    assert capsys.readouterr().out.splitlines()[-1] == expected(checkpoint, SOME, events_per_step=200)


def test_text_and_raw_on_a_pipe(checkpoint):  # noqa: F811
    call = ["stream", "--ckpt_path", "net.ckpt", "--file", "-", "--events_per_step", "200"]
    for write in (writers.text_bytes, writers.evt2_bytes):
        done = command(*call, text=False, input=write(SOME))
        assert done.returncode == 0, done.stderr
        assert done.stdout.decode().splitlines()[-1] == expected(checkpoint, SOME, events_per_step=200)


@pytest.fixture
def listening(checkpoint):  # noqa: F811
    """`stream --port 0` in a process of its own, and its port."""
    started = []

    def start(*more):
        call = [sys.executable, f"{REPOSITORY}/main.py", "stream", "--ckpt_path", "net.ckpt", "--port", "0", "--plain"]
        process = subprocess.Popen([*call, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        port = int(re.search(r"TCP and UDP port (\d+)", process.stdout.readline())[1])
        return process, port

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_port_gives_what_the_file_gives(checkpoint, listening):  # noqa: F811
    process, port = listening("--events_per_step=200", "--idle=4")
    half = len(SOME.t) // 2
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(aer_bytes(writers.Recording(*(column[:half] for column in SOME))))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        time.sleep(1)
        for part in parts_of(writers.Recording(*(column[half:] for column in SOME))):
            udp.sendto(aer_bytes(part), ("127.0.0.1", port))
            time.sleep(0.01)
        udp.sendto(b"\1\2\3", ("127.0.0.1", port))
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert expected(checkpoint, SOME, events_per_step=200) in out
    assert "dropped: 0 events that came late, and 1 damaged packets or events." in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --file, such as --file recording.raw, or --port, such as --port 9000"),
        (["--file", "a.raw", "--port", "9000"], "give --file or --port, not both"),
        (["--port", "9000", "--live"], "--live is for --file: a port is live"),
        (["--port", "9000"], "a live stream has no end to divide by T"),
        (["--port", "99999", "--events_per_step", "10"], "--port must lie in 0..65535, got 99999"),
        (["--file", "a.raw", "--idle", "3"], "--idle is for --live and --port"),
    ],
)
def test_what_does_not_go_together_is_named(checkpoint, capsys, arguments, message):  # noqa: F811
    Path("a.raw").write_bytes(writers.evt3_bytes(SOME))
    assert message in refused(capsys, "stream", "--ckpt_path", "net.ckpt", *arguments)


def test_a_recording_of_another_sensor_is_refused(checkpoint, capsys):  # noqa: F811
    Path("a.raw").write_bytes(writers.evt3_bytes(SOME, 480, 640))
    for more in ([], ["--live", "--idle=0.1", "--events_per_step=10"]):
        line = refused(capsys, "stream", "--ckpt_path", "net.ckpt", "--file", "a.raw", *more)
        assert "a.raw is of a sensor of 480x640 pixels (height x width), and the network was trained on 128x128" in line
