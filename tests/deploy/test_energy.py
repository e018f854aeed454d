"""The processor's energy counters: which are read, how they turn, and what a machine without them is told."""

import os
import time

import pytest

from plif_lightning.deploy.energy import EnergyCounters, measure
from plif_lightning.errors import UserError


def zone(root, name, label, energy=0, limit=1_000_000):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    return folder / "energy_uj"


def test_packages_and_their_memory_are_summed_and_parts_of_them_are_not(tmp_path):
    counted = [
        zone(tmp_path, "intel-rapl:0", "package-0", 100),
        zone(tmp_path, "intel-rapl:1", "package-1", 200),
        zone(tmp_path, "intel-rapl:0:2", "dram", 300),
    ]
    others = [zone(tmp_path, "intel-rapl:0:0", "core"), zone(tmp_path, "intel-rapl:2", "psys")]
    counters = EnergyCounters(tmp_path)
    before = counters.read()
    for file in (*counted, *others):
        file.write_text(str(int(file.read_text()) + 10_000))
    assert counters.joules(before, counters.read()) == pytest.approx(3 * 10_000 / 1e6)


def test_a_counter_that_began_again_is_counted_on(tmp_path):
    file = zone(tmp_path, "intel-rapl:0", "package-0", 999_000)
    counters = EnergyCounters(tmp_path)
    before = counters.read()
    file.write_text("4000")
    assert counters.joules(before, counters.read()) == pytest.approx(5_000 / 1e6)


def test_a_machine_without_counters_is_told(tmp_path):
    zone(tmp_path, "intel-rapl:0:0", "core")
    with pytest.raises(UserError, match="shows no energy counters of its processor"):
        EnergyCounters(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_counters_for_root_alone_are_named(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0").chmod(0)
    with pytest.raises(UserError, match="may be read by root alone: run as root, or let"):
        EnergyCounters(tmp_path)


def test_counters_for_root_alone_are_named_whoever_runs_this(tmp_path, monkeypatch):
    file = zone(tmp_path, "intel-rapl:0", "package-0")
    read = type(file).read_text

    def refuse(path, *arguments, **named):
        if path == file:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *arguments, **named)

    monkeypatch.setattr(type(file), "read_text", refuse)
    with pytest.raises(UserError, match=r"intel-rapl:0/energy_uj may be read by root alone"):
        EnergyCounters(tmp_path)


class Meter:
    """Counters of a machine that draws 2 W at rest and 3 J more for each call."""

    def __init__(self, clock):
        self.clock, self.calls = clock, 0

    def call(self):
        self.calls += 1
        self.clock.now += 0.5

    def read(self):
        return [self.clock.now, self.calls]

    @staticmethod
    def joules(before, after):
        return 2 * (after[0] - before[0]) + 3 * (after[1] - before[1])


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def test_energy_of_a_call_is_told_with_and_without_the_idle_machine(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    meter = Meter(clock)
    found, idle = measure({"a": meter.call}, seconds=2.0, rounds=3, counters=meter)
    assert idle == pytest.approx(2.0)
    one = found["a"]
    assert (one.calls, one.seconds) == (12, 0.5)
    assert one.joules == pytest.approx(4.0)
    assert one.joules_above_idle == pytest.approx(3.0)
    assert one.watts == pytest.approx(8.0)


def test_without_counters_time_is_measured_alone_in_turns():
    calls = []
    found, idle = measure({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, seconds=1e-9, rounds=2)
    assert calls == ["a", "b", *"abab"]
    assert idle is None
    assert (found["a"].joules, found["a"].calls) == (None, 2)


@pytest.mark.parametrize(("seconds", "rounds"), [(0, 1), (-1, 1), (float("nan"), 1), (1, 0)])
def test_nothing_to_measure_is_refused(seconds, rounds):
    with pytest.raises(UserError, match="must be positive"):
        measure({"a": lambda: None}, seconds, rounds)


@pytest.mark.parametrize(("file", "text"), [("energy_uj", ""), ("max_energy_range_uj", "0")])
def test_a_package_that_cannot_be_read_is_refused_not_left_out(tmp_path, file, text):
    zone(tmp_path, "intel-rapl:0", "package-0")
    (zone(tmp_path, "intel-rapl:1", "package-1").parent / file).write_text(text)
    with pytest.raises(UserError, match=r"intel-rapl:1 of package-1 cannot be read"):
        EnergyCounters(tmp_path)


def test_a_counter_that_turns_often_is_read_often(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    meter = Meter(clock)
    meter.read = lambda: [clock.now % 40, meter.calls % 25]  # 80 J and 75 J
    meter.joules = lambda before, after: 2 * ((after[0] - before[0]) % 40) + 3 * ((after[1] - before[1]) % 25)
    found, idle = measure({"a": meter.call}, seconds=100.0, rounds=1, counters=meter)
    assert (idle, found["a"].joules) == (pytest.approx(2.0), pytest.approx(4.0))
