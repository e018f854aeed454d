"""`stream` and `cost` as users call them."""

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from plif_lightning.cli import main, streaming
from plif_lightning.cli.streaming import _Clock, _steps_on_a_clock, _take_step_length
from plif_lightning.cli.trained import Trained
from plif_lightning.data import Digits, DVSGesture, EventFolder, SpikingDataModule
from plif_lightning.deploy import StreamingNetwork, deployed
from plif_lightning.events import Recording, Sensor, readers
from plif_lightning.events.integration import integrate
from plif_lightning.network import load_network
from plif_lightning.network.storage.fingerprint import fingerprint
from plif_lightning.runtime.input_spec import InputSpec
from plif_lightning.runtime.process import is_interrupt
from tests.cli.calls import SILENT, TINY, fit, refused, rows, until
from tests.conftest import PATIENCE, REPOSITORY
from tests.deploy.conftest import trained
from tests.writers import aedat2_bytes, events_of, evt3_bytes, nmnist_bytes, text_bytes, write_event_folder

SIZE = {"channels": 4, "fc_features": 10, "votes_per_class": 2, "pool_ties": "first"}


def weights_of(net):
    """What a checkpoint holds of a network beside its arguments."""
    state = {f"network.{name}": value for name, value in net.state_dict().items()}
    return {"state_dict": state, "fingerprint": fingerprint(net)}


def of_few_events(net):
    """A network whose layers fire for a handful of events on a large sensor, too."""
    for block in net.encoder:
        block.norm.bn.bias.data += 1.0
    return net


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """Of a network for a DVS128, with the names of DVS128 Gesture's classes."""
    monkeypatch.chdir(tmp_path)
    net = of_few_events(trained((2, 128, 128), 11, 4, n_down=4, **SIZE))
    arguments = {"input_shape": [2, 128, 128], "num_classes": 11, "time_steps": 4, "n_down": 4, **SIZE}
    data = {"class_path": "plif_lightning.data.DVSGesture", "init_args": {}}
    torch.save(
        {
            **weights_of(net),
            "hyper_parameters": arguments,
            "cli_config": yaml.safe_dump({"data": data, "model": {}}),
            "class_names": [*DVSGesture.class_names],
            "preprocessing": DVSGesture(time_steps=4).preprocessing,
        },
        "net.ckpt",
    )
    return Path("net.ckpt")


def of_folder(sensor=(128, 128), **settings):
    """Preprocessing of an `EventFolder`."""
    with tempfile.TemporaryDirectory() as folder:
        return EventFolder(root=folder, sensor=sensor, **settings).preprocessing


def expected(checkpoint, recording, **way):
    stream = StreamingNetwork(load_network(checkpoint), **way)
    stream.push(recording)
    return f"decision: {DVSGesture.class_names[int(stream.votes.argmax())]} after {stream.steps} time-steps"


def test_stream_prints_each_step_and_the_decision(checkpoint, capsys):
    recording = events_of(1000, 0)
    Path("a.aedat").write_bytes(aedat2_bytes(recording))
    main(["stream", "--ckpt_path", "net.ckpt", "--file", "a.aedat"])
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == expected(checkpoint, recording, events_per_step=250)
    assert [line.split(":")[0] for line in out[:-1]] == ["step 1", "step 2", "step 3", "step 4"]
    name = out[-1].removeprefix("decision: ").removesuffix(" after 4 time-steps")
    assert re.fullmatch(rf"step 4: {name} \d\.\d\d\d", out[-2])
    main(["stream", "--ckpt_path", "net.ckpt", "--file", "a.aedat", "--ms_per_step", "150"])
    assert capsys.readouterr().out.splitlines()[-1] == expected(checkpoint, recording, us_per_step=150_000)


def test_a_quiet_stream_prints_the_decision_alone(checkpoint, capsys):
    Path("a.aedat").write_bytes(aedat2_bytes(events_of(1000, 0)))
    main(["stream", "--ckpt_path", "net.ckpt", "--file", "a.aedat"])
    decision = capsys.readouterr().out.splitlines()[-1]
    for option in ("-q", "--quiet"):
        main(["stream", "--ckpt_path", "net.ckpt", "--file", "a.aedat", option])
        assert capsys.readouterr().out == f"{decision}\n"


@pytest.mark.parametrize(
    ("settings", "trained_on"),
    [
        ({}, "a T-th of a recording's events"),
        ({"slicing": "by_time"}, "a T-th of a recording's time"),
        ({"slicing": "by_time", "step_ms": 5.0}, "5 ms"),
        ({"window_ms": 80.0}, "20 ms"),
    ],
)
def test_steps_of_another_length_than_in_training_are_named(checkpoint, settings, trained_on, capsys):
    held = torch.load(checkpoint, weights_only=True)
    torch.save({**held, "preprocessing": of_folder(time_steps=4, **settings)}, "net.ckpt")
    Path("a.aedat").write_bytes(aedat2_bytes(events_of(1000, 0)))
    call = ["stream", "--ckpt_path", "net.ckpt", "--file", "a.aedat", "--quiet"]
    main([*call, "--ms_per_step", "150"])
    note = capsys.readouterr().err
    assert f"trained on time-steps of {trained_on}, and these have 150 ms" in note
    if trained_on[0].isdigit():
        main([*call, "--ms_per_step", trained_on.split()[0]])
    else:
        main(call)
    assert "the network was trained on" not in capsys.readouterr().err


def test_an_event_outside_of_the_camera_is_named_in_its_coordinates(checkpoint, capsys):
    held = torch.load(checkpoint, weights_only=True)
    torch.save({**held, "preprocessing": of_folder(size=[128, 128], sensor=[200, 300])}, "net.ckpt")
    recording = events_of(1000, 0, 200, 600)  # of another camera
    Path("a.csv").write_bytes(text_bytes(recording, "txyp", ","))
    outside = int(recording.x[recording.x >= 300][0])
    line = refused(capsys, "stream", "--ckpt_path", "net.ckpt", "--file", "a.csv")
    assert f"a.csv: event {int((recording.x >= 300).argmax())} has x = {outside}, but a sensor of 200x300" in line
    assert line.endswith("Pass --sensor HEIGHT WIDTH of its camera.")
    main(["stream", "--ckpt_path", "net.ckpt", "--file", "a.csv", "--sensor", "200", "600", "-q"])
    assert "decision" in capsys.readouterr().out


def test_an_interrupt_is_found_in_the_errors_that_wrap_it():
    error, inner = RuntimeError("while a kernel was loaded"), SystemError("returned a result with an exception set")
    error.__cause__, inner.__cause__ = inner, KeyboardInterrupt()
    assert is_interrupt(error)
    assert is_interrupt(inner)
    assert is_interrupt(KeyboardInterrupt())
    assert not is_interrupt(RuntimeError())


def test_an_interrupt_while_a_kernel_loads_is_no_traceback(checkpoint, monkeypatch, capsys):
    Path("a.aedat").write_bytes(aedat2_bytes(events_of(1000, 0)))

    def interrupted(*arguments, **named):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise SystemError("a kernel") from error

    monkeypatch.setattr(StreamingNetwork, "__init__", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["stream", "--ckpt_path", "net.ckpt", "--file", "a.aedat"])
    assert (ended.value.code, capsys.readouterr().err) == (130, "interrupted\n")


def test_a_stream_that_is_interrupted_ends_with_its_decision(checkpoint):
    Path("a.aedat").write_bytes(aedat2_bytes(events_of(100_000, 0)))
    call = [sys.executable, str(REPOSITORY / "main.py"), "stream", "--ckpt_path", "net.ckpt", "--file", "a.aedat"]
    with Path("said").open("w") as said:
        process = subprocess.Popen([*call, "--events_per_step", "1"], stdout=said, stderr=said)
    until(lambda: "step 5:" in Path("said").read_text() or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) in (0, 1)  # 1 where no output neuron has fired yet
    assert "decision" in Path("said").read_text().splitlines()[-1]
    assert "step 100000:" not in Path("said").read_text()


@contextmanager
def live(source, **settings):
    """A process of `stream --every_ms`, which ends with the block."""
    call = [sys.executable, str(REPOSITORY / "main.py"), "stream", "--ckpt_path", "net.ckpt", "--every_ms", "20"]
    with subprocess.Popen([*call, "--file", source], stdout=subprocess.PIPE, text=True, **settings) as process:
        patience = threading.Timer(PATIENCE, process.kill)
        patience.start()
        try:
            yield process
        finally:
            patience.cancel()
            process.kill()


def test_a_pipe_is_decided_on_a_clock_in_silence_too(checkpoint):
    recording = events_of(1000, 0)
    with live("-", stdin=subprocess.PIPE) as process:
        process.stdin.write(text_bytes(recording, "txyp", ",").decode())  # then silence
        process.stdin.flush()
        seen = (int(recording.t[-1]) - int(recording.t[0])) // 20_000
        assert process.stdout.readline().startswith("ready: following standard input")
        steps = [process.stdout.readline().split(":")[0] for _ in range(seen + 5)]
        assert steps == [f"step {i}" for i in range(1, seen + 6)]
        process.stdin.close()  # the camera is switched off
        *_, latency, decision = process.stdout.read().splitlines()
    assert re.fullmatch(r"latency, .*: p50 \d+\.\d\d ms, p99 \d+\.\d\d ms", latency)
    assert "decision" in decision


def test_a_file_that_grows_is_followed(checkpoint):
    recording = events_of(1000, 0)
    lines = text_bytes(recording, "txyp", ",").splitlines(keepends=True)
    path = Path("live.csv")
    path.write_bytes(lines[0])  # the header alone
    with live(str(path)) as process:
        assert process.stdout.readline() == "ready: following live.csv, a decision every 20 ms, until Ctrl-C\n"
        with path.open("ab") as file:
            file.write(b"".join(lines[1:300]) + lines[300][:5])  # a line is being written
        assert process.stdout.readline().startswith("step 1:")
        with path.open("ab") as file:
            file.write(lines[300][5:] + b"".join(lines[301:]))
        seen = (int(recording.t[-1]) - int(recording.t[0])) // 20_000
        while not process.stdout.readline().startswith(f"step {seen + 3}:"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert "decision" in process.stdout.read().splitlines()[-1]


def test_a_pipe_gives_the_votes_of_the_file(checkpoint, capsys):
    recording = events_of(1000, 0)
    Path("a.csv").write_bytes(text_bytes(recording, "txyp", ","))
    main(["stream", "--ckpt_path", "net.ckpt", "--file", "a.csv", "--ms_per_step", "20"])
    expected = capsys.readouterr().out.splitlines()
    with Path("a.csv").open() as file, live("-", stdin=file) as process:
        said, _ = process.communicate()
    assert [line for line in said.splitlines() if not line.startswith(("ready", "latency"))] == expected


def test_a_recording_of_another_sensor_is_rescaled_as_in_training(checkpoint, capsys):
    held = torch.load(checkpoint, weights_only=True)
    recording = events_of(1000, 0)
    Path("a.aedat").write_bytes(aedat2_bytes(recording))
    twice = recording._replace(x=recording.x * 4, y=recording.y * 2)
    Path("b.raw").write_bytes(evt3_bytes(twice, 256, 512))
    Path("c.csv").write_bytes(text_bytes(twice, "txyp", ","))
    said = []
    for file, settings in (
        ("a.aedat", {}),
        ("a.aedat", {"size": [128, 128]}),
        ("b.raw", {"size": [128, 128]}),
        ("c.csv", {"size": [128, 128], "sensor": [256, 512]}),
    ):
        torch.save({**held, "preprocessing": of_folder(**settings)}, "net.ckpt")
        main(["stream", "--ckpt_path", "net.ckpt", "--file", file])
        said.append(capsys.readouterr().out)
    assert len({*said}) == 1
    with live("-", stdin=subprocess.PIPE) as process:
        lines, _ = process.communicate(Path("c.csv").read_text())
    assert "decision" in lines
    torch.save({**held, "preprocessing": of_folder(size=[128, 128], sensor=None)}, "net.ckpt")
    call = ["stream", "--ckpt_path", "net.ckpt", "--file", "c.csv"]
    assert "c.csv does not name its sensor: pass --sensor" in refused(capsys, *call)
    main([*call, "--sensor", "256", "512"])
    assert capsys.readouterr().out == said[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--every_ms", "5"], "a.aedat cannot be followed: a live source is text, a line for each event"),
        (["--every_ms", "5", "--file", "no.csv"], "no.csv does not exist"),
        (["--every_ms", "5", "--file", "bad.csv"], "bad.csv has no header that names its columns"),
        (["--every_ms", "5", "--file", "worse.csv"], "worse.csv cannot be read: '1,2,three,1' is no event"),
        (
            ["--events_per_step", "5", "--ms_per_step", "5"],
            "--ms_per_step: not allowed with argument --events_per_step",
        ),
        (["--file", "-"], "standard input has no end that is known: pass --every_ms MILLISECONDS with --file -"),
        (["--sensor", "5", "5"], "--sensor is for a network that was trained on recordings of several cameras"),
        (["--every_ms", "5", "--file", "ms.csv"], "ms.csv: its times have fractions, so they are not us: pass"),
        (["--every_ms", "0"], "--every_ms must be above 0 milliseconds, got 0"),
        (["--ms_per_step", "abc"], "--ms_per_step: invalid float value: 'abc'"),
        (["--ms_per_step", "0.0001"], "us_per_step must be a whole number, at least 1, got 0"),
        (["--engine", "events"], "argument --engine: invalid choice: 'events' (choose from 'float32', 'int8')"),
        (["--events_per_step", "0"], "events_per_step must be a whole number, at least 1, got 0"),
        (["--events_per_step", "some"], "argument --events_per_step: invalid int value: 'some'"),
        (["--file", "no.aedat"], "no.aedat does not exist"),
        (["--ckpt_path", "no.ckpt"], "checkpoint no.ckpt does not exist"),
    ],
)
def test_stream_errors_are_single_sentences(checkpoint, arguments, message, capsys):
    Path("a.aedat").write_bytes(aedat2_bytes(events_of(100, 0)))
    Path("bad.csv").write_text("1,2,3,1\n")
    Path("ms.csv").write_text("t,x,y,p\n1.5,1,2,1\n")
    Path("worse.csv").write_text("t,x,y,p\n1,2,three,1\n")
    line = refused(capsys, "stream", "--ckpt_path", "net.ckpt", "--file", "a.aedat", *arguments)
    assert message in line


def test_a_given_length_of_steps_runs_through_the_file(checkpoint, capsys):
    """Without one, a network of time-steps of a duration sees T of them, as in training."""
    held = torch.load(checkpoint, weights_only=True)
    torch.save({**held, "preprocessing": of_folder(time_steps=4, step_ms=5.0, slicing="by_time")}, "net.ckpt")
    Path("a.csv").write_bytes(text_bytes(events_of(1000, 0), "txyp", ","))
    steps = []
    for given in ([], ["--ms_per_step", "5"]):
        with contextlib.suppress(SystemExit):
            main(["stream", "--ckpt_path", "net.ckpt", "--file", "a.csv", *given])
        steps.append(capsys.readouterr().out.count("step "))
    assert 4 == steps[0] < steps[1]


def test_a_stream_names_columns_and_unit_itself(checkpoint, capsys):
    recording, said = events_of(1000, 0), []
    call = ["stream", "--ckpt_path", "net.ckpt", "--file"]
    Path("a.csv").write_bytes(text_bytes(recording, "txyp", ","))
    Path("b.csv").write_bytes(text_bytes(recording, "yxpt", ",", header=False, unit="ns"))
    for file, settings in (("a.csv", []), ("b.csv", ["--columns", "y", "x", "p", "t", "--time_unit", "ns"])):
        main([*call, file, *settings])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


def test_events_behind_the_end_of_their_step_are_counted(checkpoint):
    with live("-", stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write("t,x,y,p\n1000,1,1,1\n")
        process.stdin.flush()
        for _ in range(3):  # ready, and steps in silence
            process.stdout.readline()
        said = process.communicate("1500,2,2,1\n1600,3,3,1\n")[1]
    assert "note: 2 of 3 events arrived after their time-step was closed" in said


def test_text_recordings_use_the_data_sets_columns_and_unit(checkpoint, capsys):
    recording = events_of(1000, 0)
    Path("a.txt").write_bytes(text_bytes(recording, "yxpt", " ", header=False, unit="s"))
    assert "a.txt" in refused(capsys, "stream", "--ckpt_path", "net.ckpt", "--file", "a.txt")
    held = torch.load(checkpoint, weights_only=True)
    torch.save({**held, "preprocessing": of_folder(columns=list("yxpt"), time_unit="s")}, "net.ckpt")
    main(["stream", "--ckpt_path", "net.ckpt", "--file", "a.txt", "--ms_per_step", "150"])
    assert capsys.readouterr().out.splitlines()[-1] == expected(checkpoint, recording, us_per_step=150_000)


def test_a_sensor_of_another_size_and_other_networks_are_refused(checkpoint, run_of_digits, capsys):
    small = events_of(100, 0, 34, 34)
    Path("small.bin").write_bytes(nmnist_bytes(small))
    net = trained((2, 12, 12), 11, 4, **SIZE)
    torch.save(
        {
            **weights_of(net),
            "hyper_parameters": {"input_shape": [2, 12, 12], "num_classes": 11, "time_steps": 4, **SIZE},
        },
        "small.ckpt",
    )
    line = refused(capsys, "stream", "--ckpt_path", "small.ckpt", "--file", "small.bin")
    assert "but a sensor of 12x12 pixels" in line
    line = refused(capsys, "stream", "--ckpt_path", str(run_of_digits), "--file", "small.bin")
    assert "the network takes 1 x 8 x 8 images" in line
    Path("a.raw").write_bytes(evt3_bytes(small, 480, 640))
    line = refused(capsys, "stream", "--ckpt_path", "net.ckpt", "--file", "a.raw")
    assert "a.raw is of a sensor of 480x640 pixels (height x width), and the network was trained on 128x128" in line


def test_a_network_that_was_trained_without_time_is_not_streamed(checkpoint, capsys):
    content = torch.load(checkpoint)
    torch.save(content | {"preprocessing": DVSGesture(probe="shuffled").preprocessing}, "probed.ckpt")
    Path("a.aedat").write_bytes(aedat2_bytes(events_of(1000, 0)))
    line = refused(capsys, "stream", "--ckpt_path", "probed.ckpt", "--file", "a.aedat")
    assert "trained with data.probe=shuffled, which takes time away" in line


def test_too_few_events_are_reported(checkpoint, capsys):
    Path("a.aedat").write_bytes(aedat2_bytes(Recording(*(column[:3] for column in events_of(100, 0)))))
    with pytest.raises(SystemExit) as stop:
        main(["stream", "--ckpt_path", "net.ckpt", "--file", "a.aedat", "--events_per_step", "5"])
    assert stop.value.code == 1
    assert "no time-step is complete: 3 events are pending" in capsys.readouterr().out


@pytest.mark.parametrize(("events", "slicing"), [(19, "by_count"), (1000, "by_count"), (1000, "by_time")])
def test_streamed_recording_has_the_frames_of_its_data_set(checkpoint, events, slicing, capsys):
    recording = Recording(*(column[:events] for column in events_of(1000, 0)))
    Path("a.aedat").write_bytes(aedat2_bytes(recording))
    held = torch.load(checkpoint, weights_only=True)
    held["preprocessing"]["slicing"] = slicing
    torch.save(held, checkpoint)
    main(["stream", "--ckpt_path", "net.ckpt", "--file", "a.aedat"])
    out = capsys.readouterr().out.splitlines()
    x = torch.from_numpy(integrate(recording, Sensor(128, 128), 4, slicing)).float()[:, None]
    votes = deployed(load_network(checkpoint))(x).mean(0)[0]
    assert out[-1] == f"decision: {DVSGesture.class_names[int(votes.argmax())]} after 4 time-steps"
    assert out[-2].endswith(f" {votes.max():.3f}")


def test_smaller_frames_cover_the_full_sensor(checkpoint, capsys):
    net = of_few_events(trained((2, 32, 32), 11, 4, n_down=4, **SIZE))
    held = torch.load(checkpoint, weights_only=True)
    held |= weights_of(net)
    held["hyper_parameters"]["input_shape"] = [2, 32, 32]
    held["preprocessing"] = DVSGesture(size=32).preprocessing
    torch.save(held, "small.ckpt")
    recording = events_of(1000, 0)
    Path("a.aedat").write_bytes(aedat2_bytes(recording))
    quarter = Recording(recording.t, recording.x // 4, recording.y // 4, recording.p)
    stream = StreamingNetwork(net, events_per_step=100)
    stream.push(quarter)
    main(["stream", "--ckpt_path", "small.ckpt", "--file", "a.aedat", "--events_per_step", "100"])
    assert capsys.readouterr().out.splitlines()[-2].endswith(f" {stream.votes.max():.3f}")


def test_a_wrong_event_is_named_with_its_file_before_the_first_step(checkpoint, capsys):
    recording = events_of(20_000, 0)
    recording.t[12_000:] -= 500_000
    Path("a.aedat").write_bytes(aedat2_bytes(recording))
    line = refused(capsys, "stream", "--ckpt_path", "net.ckpt", "--file", "a.aedat", "--events_per_step", "1000")
    assert "a.aedat: time runs backwards at event 12000" in line
    Path("a.aedat").write_bytes(aedat2_bytes(Recording(*(column[:0] for column in recording))))
    line = refused(capsys, "stream", "--ckpt_path", "net.ckpt", "--file", "a.aedat")
    assert "a.aedat holds no events" in line


@pytest.fixture(scope="module")
def run_of_digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        few = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1", "--trainer.max_epochs", "1"]
        fit(*TINY, *few, "--test_after_fit", "false", "--run_folder", "RUN", "--record_samples", "0")
    return folder / "RUN/checkpoints/best.ckpt"


def test_cost_is_a_table_and_a_file(run_of_digits, tmp_path, capsys):
    main(["cost", "--ckpt_path", str(run_of_digits), "--samples", "4", "--out", str(tmp_path / "cost.csv")])
    out = " ".join(capsys.readouterr().out.split())
    assert "measured on 4" in out
    assert "Above 1 the conventional network wins." in out
    number = r"[\d.,]+"
    latency = rf"\[ms\]: {number} as trained, {number} --engine float32, {number} --engine int8 \(.*, \d+ threads?\)\."
    assert re.search(f"Latency of a sample on this machine {latency}", out)
    for unit in ("[k]", "[uJ]", "[MB]"):
        assert unit in out
    table = rows(tmp_path / "cost.csv")
    assert len(table[0]) == 13  # no two columns have the same name
    assert [row["layer"] for row in table] == ["conv1", "conv2", "fc1", "fc2", "all"]
    assert float(table[0]["AC [M]"]) == 0  # images are no spikes
    # Numbers as a program reads them, and none of them rounded away: this network is tiny.
    assert all(float(row[name]) > 0 for row in table for name in row if "[uJ]" in name)
    assert table[-1]["firing [%]"] == ""
    arithmetic, *with_memory = map(float, re.findall(r"(\d+\.\d\d)(?= of a| times)", out))
    assert 0 < arithmetic < 1  # it skips, and adds in the place of multiplying
    expected = [
        float(table[-1][f"int8, {how} [uJ]"]) / float(table[-1][f"ANN, {how} [uJ]"]) for how in ("fetched", "reused")
    ]
    assert with_memory == pytest.approx(expected, abs=0.006)


class Direct(SpikingDataModule):
    """Digits without `augmentation`, which only the package's own data sets have."""

    title = "digits"
    input_shape = Digits.image_shape
    class_names = Digits.class_names

    def __post_init__(self):
        super().__post_init__()
        self.digits = Digits()

    def labels(self, train):
        return self.digits.labels(train)

    def dataset(self, train, indices, augment):
        return self.digits.dataset(train, indices, augment)


def test_cost_disables_augmentation(run_of_digits, tmp_path, capsys):
    held = torch.load(run_of_digits, weights_only=True)
    config = yaml.safe_load(held["cli_config"])
    arguments = {name: value for name, value in config["data"]["init_args"].items() if name == "time_steps"}
    config["data"] = {"class_path": "tests.cli.test_deploy.Direct", "init_args": arguments}
    held["cli_config"] = yaml.safe_dump(config)
    torch.save(held, tmp_path / "net.ckpt")
    main(["cost", "--ckpt_path", str(tmp_path / "net.ckpt"), "--samples", "4"])
    assert "measured on 4" in capsys.readouterr().out


def test_stream_and_test_name_the_same_classes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_event_folder(tmp_path / "hands")
    few = ["--trainer.max_epochs", "1", "--model.channels", "4", "--model.fc_features", "10", "--model.n_down", "4"]
    data = ["--data", "EventFolder", "--data.root", "hands", "--data.sensor=[128,128]", "--data.time_steps", "2"]
    data += ["--data.validation", "test"]
    main(["fit", *data, *few, *SILENT, "--data.batch_size", "2", "--run_folder", "RUN", "--record_samples", "0"])
    recording = next(Path("hands/test/left").glob("*"))
    net = load_network("RUN/checkpoints/best.ckpt")
    held = torch.load("RUN/checkpoints/best.ckpt", weights_only=True)
    assert held["class_names"] == ["left", "right"]
    x = torch.from_numpy(integrate(readers.read_any(recording), Sensor(128, 128), 2)).float()[:, None]
    with torch.no_grad():  # until an output neuron fires
        while not (votes := net(x).mean(0)[0]).any():
            for block in net.classifier:
                block.fc.weight += 0.05
            for block in net.encoder:
                block.norm.bn.bias += 0.3
    held["state_dict"] |= {f"network.{name}": value for name, value in net.state_dict().items()}
    torch.save(held, "net.ckpt")
    main(["export", "--ckpt_path", "net.ckpt", "--out", "out"])
    shutil.rmtree("hands/train")  # nobody needs the files for it
    for path in ("net.ckpt", "out"):
        main(["stream", "--ckpt_path", path, "--file", str(recording)])
        said = f"decision: {('left', 'right')[int(votes.argmax())]} after 2 time-steps"
        assert capsys.readouterr().out.splitlines()[-1] == said
    manifest = json.loads(Path("out/export.json").read_text())
    assert (manifest["data"], manifest["class_names"]) == ("EventFolder", ["left", "right"])


def test_the_pages_live_source_decides_in_silence_too(checkpoint):
    page = (REPOSITORY / "docs/howto/deploy.md").read_text()
    (code,) = re.findall(r"```python\n(import socket\n.*?)```", page, re.S)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = code.replace("9000", str(port)).replace("RUN/checkpoints/best.ckpt", str(Path(checkpoint).resolve()))
    code = code.replace("while True:", "print('ready', flush=True)\nwhile True:")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    patience = threading.Timer(PATIENCE, process.kill)
    patience.start()
    try:
        assert process.stdout.readline() == "ready\n"
        t, x, y, p = (np.asarray(column).astype(np.uint32) for column in events_of(500, 0))
        words = np.stack([x << 16 | p << 15 | y, np.full(len(t), 1_000)], 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as camera:
            camera.sendto(words.astype("<u4").tobytes(), ("127.0.0.1", port))  # one packet, then silence
        assert all(0 <= int(process.stdout.readline()) < 11 for _ in range(3))
    finally:
        patience.cancel()
        process.kill()
        process.communicate()


def test_a_network_that_does_not_fire_decides_nothing(checkpoint, capsys):
    held = torch.load(checkpoint, weights_only=True)
    held["state_dict"]["network.classifier.fc2.fc.weight"].zero_()
    torch.save(held, checkpoint)
    Path("a.aedat").write_bytes(aedat2_bytes(events_of(1000, 0)))
    with pytest.raises(SystemExit) as stop:
        main(["stream", "--ckpt_path", "net.ckpt", "--file", "a.aedat"])
    assert stop.value.code == 1
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "no decision: no output neuron has fired in 4 time-steps."
    assert out[0].startswith("step 1: no vote yet")


@pytest.mark.parametrize(
    ("settings", "given", "expected", "note"),
    [
        ({"window_ms": 100}, (None, None), (None, 25), ""),
        ({"window_events": 1001}, (None, None), (250, None), ""),
        ({"window_ms": 100}, (None, 25.0), (None, 25), ""),
        ({"window_ms": 100}, (None, 7.0), (None, 7), "of 25 ms, and these have 7 ms"),
        ({"window_ms": 100}, (50, None), (50, None), "of 25 ms, and these have 50 events"),
        ({"window_events": 1001}, (250, None), (250, None), ""),
        ({"window_events": 1001}, (None, 7.0), (None, 7), "of 250 events, and these have 7 ms"),
        ({"step_ms": 5, "slicing": "by_time"}, (None, None), (None, 5), ""),
        ({"slicing": "by_time"}, (None, 7.0), (None, 7), "of a T-th of a recording's time, and these have 7 ms"),
        ({"slicing": "by_count"}, (9, None), (9, None), "of a T-th of a recording's events, and these have 9 events"),
        ({}, (None, None), (None, None), ""),
    ],
)
def test_stream_uses_the_step_length_of_training_and_names_another(settings, given, expected, note, capsys):
    options = SimpleNamespace(events_per_step=given[0], ms_per_step=given[1], every_ms=None)
    given = InputSpec.of(of_folder(time_steps=4, **settings) if settings else None)
    _take_step_length(options, Trained(SimpleNamespace(time_steps=4), {}, [], given))
    assert (options.events_per_step, options.ms_per_step) == expected
    said = capsys.readouterr().err
    assert note in said
    assert bool(note) == bool(said)


def test_events_behind_the_last_complete_step_are_named(checkpoint, capsys):
    Path("a.csv").write_bytes(text_bytes(events_of(1000, 0), "txyp", ","))
    call = ["stream", "--ckpt_path", str(checkpoint), "--file", "a.csv", "-q", "--events_per_step"]
    for per_step, expected in (("300", "note: 100 events behind the last complete time-step are not in"), ("250", "")):
        with contextlib.suppress(SystemExit):
            main([*call, per_step])
        found = capsys.readouterr().err
        assert expected in found
        assert ("behind the last" in found) == bool(expected)


def test_a_step_is_closed_half_its_length_after_its_end_on_the_clock_of_the_earliest_event(monkeypatch):
    """Of steps of 20 ms: events at 1 and 5 ms arrive at once, and one at 10 ms already 4 ms later."""
    now, waits, advanced = [1.0], [], []
    clock = _Clock()
    arrivals = [[1000, 5000], [10_000], [], None]

    def take(wait):
        waits.append(wait)
        now[0] += 0.004 if len(waits) == 2 else wait or 0.0
        t = arrivals.pop(0)
        return None if t is None else (now[0], Recording(np.array(t, np.int64), *np.zeros((3, len(t)), np.int64)))

    def pushed(recording, name):
        network.latest, network.step_end = recording.t[-1], 20_000
        return iter(())

    def closed(t):
        advanced.append(t)
        network.step_end = None
        return iter(["votes"])

    monkeypatch.setattr(streaming, "monotonic", lambda: now[0])
    network = SimpleNamespace(us_per_step=20_000, step_end=None, latest=None, pushed=pushed, advanced=closed)
    steps = _steps_on_a_clock(network, SimpleNamespace(take=take, name="x"), lambda events: events, clock)
    assert list(steps) == ["votes"]
    # The event at 10 ms, 5 ms after that at 5 ms, took 4 ms: its clock is 1 ms ahead.
    assert waits == [None, pytest.approx(0.025), pytest.approx(0.020), None]
    assert advanced == [pytest.approx(20_000, abs=1)]
    assert (clock.latencies, clock.late) == ([0.0], 0)
