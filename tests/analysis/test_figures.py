"""The paper's figures: what they show, and that they are made from whatever runs there are."""

import hashlib
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from plif_lightning import network
from plif_lightning.analysis.figures import FIGURES, drawn, write_figures
from plif_lightning.analysis.figures.accuracy import _draw_mean, figure_6, moving_average
from plif_lightning.analysis.figures.neurons import RESPONSES, STEPS_PER_MS, TAU_MS, membrane_response
from plif_lightning.analysis.figures.page import WIDTH, literal, new_panels, shorten
from plif_lightning.analysis.figures.panels import by_panel, panel_of
from plif_lightning.analysis.figures.taus import figure_7
from plif_lightning.analysis.frame import read_runs
from plif_lightning.analysis.layers import layer_table
from plif_lightning.analysis.select import groups
from plif_lightning.cli import main
from plif_lightning.network import SpikeMaxPool2d
from plif_lightning.plot.style import COLOURS, MARKERS
from plif_lightning.runs.run import find_runs, read_run
from tests import writers
from tests.writers import COST, PAPER, write_run


def test_the_response_to_constant_input_is_the_solution_of_the_equation():
    taus, weights = [5.0, 10.0, 20.0], [1.0, 2.0, 0.5]
    v = membrane_response(np.ones(60 * STEPS_PER_MS), taus, weights)
    time = np.arange(1, len(v) + 1)[:, None] / STEPS_PER_MS
    exact_steps = np.array(weights) * (1 - (1 - 1 / (np.array(taus) * STEPS_PER_MS)) ** (time * STEPS_PER_MS))
    np.testing.assert_allclose(v, exact_steps, rtol=1e-10)
    # tau dV/dt = -V + w I (Eq. 1), to the width of a step
    np.testing.assert_allclose(v, np.array(weights) * (1 - np.exp(-time / taus)), atol=0.005)


def test_the_response_to_a_spike_jumps_and_decays_with_tau():
    current = np.zeros(40 * STEPS_PER_MS)
    current[5 * STEPS_PER_MS] = STEPS_PER_MS * TAU_MS
    v = membrane_response(current, [TAU_MS, 2 * TAU_MS], [1.0, 1.0])
    time = np.arange(len(v) - 5 * STEPS_PER_MS) / STEPS_PER_MS
    for i, tau in enumerate((TAU_MS, 2 * TAU_MS)):
        expected = TAU_MS / tau * np.exp(-time / tau)
        np.testing.assert_allclose(v[5 * STEPS_PER_MS :, i], expected, atol=0.005)
    assert (v[: 5 * STEPS_PER_MS] == 0).all()


def test_moving_average_uses_complete_windows():
    np.testing.assert_allclose(moving_average([1, 2, 3, 6], 2), [1.5, 2.5, 4.5])
    assert len(moving_average([1.0] * 200)) == 137


@pytest.mark.parametrize(("every", "first"), [(1, 64), (8, 8)])
def test_only_epochs_are_smoothed(tmp_path, every, first):
    """Found by a review: a window of 64 validations was called one of 64 epochs."""
    write_run(tmp_path / "a", (0.5,) * 1024)
    run = read_run(tmp_path / "a")
    run = replace(run, metrics=[row for row in run.metrics if (row["epoch"] + 1) % every == 0])
    figure, caption = figure_6([run])
    assert figure.axes[0].lines[1].get_xdata()[0] == first
    assert ("moving average" in caption) == (every == 1)


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "a", seed=1)
    write_run(tmp_path / "b", (0.5, 0.7, 0.9), seed=2)
    write_run(tmp_path / "c", init_tau=16.0, neuron="lif")
    write_run(tmp_path / "d", init_tau=16.0, frames=8)
    write_run(tmp_path / "e", data="NMNIST", finished=False)
    write_run(tmp_path / "f", (0.1,) * 130, time_steps=4)
    for neuron in ("plif", "lif"):
        write_run(tmp_path / neuron, validation="holdout", test=0.7, model={**PAPER, "neuron": neuron}, cost=COST)
    return find_runs(tmp_path)


@pytest.mark.slow
def test_all_figures_are_drawn_deterministically(runs, tmp_path):
    digests = []
    for folder, names in (("one", list(FIGURES)), ("two", ["6", "S3"])):
        assert write_figures(runs, tmp_path / folder, names) == 0
        pictures = (tmp_path / folder).glob("figure*")
        digests.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in pictures})
    assert digests[1].items() <= digests[0].items()
    assert set(digests[0]) == {f"figure{name}.{kind}" for name in FIGURES for kind in ("pdf", "png")}
    captions = (tmp_path / "one" / "captions.md").read_text()
    assert all(f"**Figure {name}.** " in captions for name in FIGURES)
    assert "Data: Fashion-MNIST; PLIF, tau_0 = 2; run b." in captions


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_no_wider_than_a_page_and_has_no_text_about_itself(runs, name):
    figure, caption = drawn(name, runs)
    assert figure.get_size_inches()[0] <= WIDTH + 1e-9
    assert figure._suptitle is None
    assert figure._supxlabel is None
    assert caption.endswith(".")
    figure.draw_without_rendering()
    for ax in figure.axes:
        size = ax.get_window_extent().size / figure.dpi  # [inch]: nothing is squeezed until it cannot be seen
        assert not ax.get_visible() or size.min() > 0.15, size


def test_figure_7_shows_the_authors_time_constants(tmp_path):
    layers = ("conv1", "conv2", "fc1", "fc2")
    write_run(tmp_path / "a", (0.5, 0.7, 0.9), layers=layers)
    write_run(tmp_path / "b", (0.5, 0.7, 0.9), layers=layers, validation="holdout", test=0.5)
    figure, caption = drawn("7", find_runs(tmp_path))
    crosses = {
        re.search("protocol ([AB])", panel.get_title(loc="left"))[1]: [
            line.get_xydata().tolist() for line in panel.lines if line.get_marker() == "x"
        ]
        for panel in figure.axes
    }
    assert crosses["B"] == []
    assert crosses["A"][0] == [[1, 1.760], [2, 1.616], [3, 1.542]]
    assert len(crosses["A"]) == 4
    assert "Crosses: the authors' runs" in caption


@pytest.mark.parametrize("name", FIGURES)
def test_a_caption_names_crosses_only_where_a_panel_has_some(name, runs):
    figure, caption = drawn(name, runs)
    shown = any(line.get_marker() == "x" for panel in figure.axes for line in panel.lines)
    assert ("Crosses" in caption or "crosses" in caption) == shown


@pytest.mark.parametrize("name", ["6", "7"])
def test_without_the_authors_values_no_caption_names_them(name, tmp_path):
    write_run(tmp_path / "a", (0.5, 0.7, 0.9), validation="holdout", test=0.5)
    figure, caption = drawn(name, find_runs(tmp_path))
    assert not [line for panel in figure.axes for line in panel.lines if line.get_marker() == "x"]
    assert "the authors' runs" not in caption


def test_figure_6_shows_means_and_the_authors_points(runs):
    figure, _ = figure_6(runs)
    panel = next(a for a in figure.axes if a.get_title(loc="left").startswith("Fashion-MNIST\nT = 8"))
    solid = [line for line in panel.lines if "(2 runs)" in str(line.get_label())]
    np.testing.assert_allclose(solid[0].get_ydata(), [50, 72.5, 80])
    crosses = [line for line in panel.lines if line.get_marker() == "x"]
    assert crosses[0].get_xydata().tolist() == [[1, 88.96], [2, 90.46], [3, 91.10]]


def test_a_run_that_has_not_come_to_its_end_counts_only_where_there_is_no_other(tmp_path):
    write_run(tmp_path / "a", (0.5, 0.7, 0.9), seed=1)
    write_run(tmp_path / "b", (0.1, 0.1, 0.1), seed=2, finished=False)
    write_run(tmp_path / "c", (0.2, 0.2, 0.2), seed=1, neuron="lif", finished=False)
    (panel,) = figure_6(find_runs(tmp_path))[0].axes
    means = {str(line.get_label()): line.get_ydata() for line in panel.lines if "tau" in str(line.get_label())}
    assert not [label for label in means if "runs)" in label]
    np.testing.assert_allclose(sorted(y[0] for y in means.values()), [20, 50])


def test_figure_7_begins_at_the_initial_value(runs):
    figure, _ = figure_7(runs)
    panel = next(a for a in figure.axes if a.get_title(loc="left").startswith("Fashion-MNIST\nT = 8"))
    starts = {line.get_ydata()[0] for line in panel.lines if len(line.get_xdata())}
    assert starts == {2.0, 16.0}
    assert {line.get_fillstyle() for line in panel.lines if len(line.get_xdata())} == {"full", "none"}
    assert 16 in panel.yaxis.get_ticklocs()
    assert all(tick == int(tick) for tick in panel.xaxis.get_ticklocs())
    names = [str(line.get_label()) for line in panel.lines]
    assert "$\\tau(0)$: conv1" in names


def test_curves_are_labelled_by_their_differences(runs, tmp_path):
    write_run(tmp_path / "g", seed=9, model={"loss": "rate"})
    figure, _ = figure_6(find_runs(tmp_path))
    panel = next(a for a in figure.axes if a.get_title(loc="left").startswith("Fashion-MNIST\nT = 8"))
    names = [name for line in panel.lines if not (name := str(line.get_label())).startswith("_")]
    assert names == [
        "PLIF, $\\tau_0$ = 2 (2 runs)",
        "PLIF, $\\tau_0$ = 2, loss rate",
        "PLIF, $\\tau_0$ = 16",
        "LIF, $\\tau$ = 16",
    ]


def test_figures_without_data_are_reported_and_the_others_drawn(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a", neuron="lif", finished=False).weights.unlink()
    made = write_figures(find_runs(tmp_path / "runs"), tmp_path / "out", ["1b", "7", "S1", "S3"])
    assert made == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["captions.md", "figure1b.pdf", "figure1b.png"]
    said = capsys.readouterr().err
    for name in ("7", "S1", "S3"):
        assert f"figure {name} is left out: no " in said


def test_drawing_no_figure_is_a_failure(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a", neuron="lif", finished=False).weights.unlink()
    assert write_figures(find_runs(tmp_path / "runs"), tmp_path / "out", ["7", "S3"]) == 1
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().err.count("is left out: no ") == 2


@pytest.mark.parametrize(("steps", "shown"), [(20, [*range(20)]), (39, [*range(0, 40, 2)])])
def test_twenty_of_many_steps_are_drawn(steps, shown, tmp_path, monkeypatch):
    write_run(tmp_path / "a", data="CIFAR10DVS", frames=steps, time_steps=steps)
    titles = []
    monkeypatch.setattr("plif_lightning.analysis.figures.samples._step_titles", lambda of: titles.append(of) or [])
    for name in ("S4", "S5"):
        drawn(name, find_runs(tmp_path))
    assert titles == [shown, shown]


def test_figure_prefers_the_papers_data_set_and_names_its_run(tmp_path):
    write_run(tmp_path / "digits", (0.99,), data="Digits", title="scikit-learn digits", frames=8)
    write_run(tmp_path / "fashion", (0.5,))
    runs = find_runs(tmp_path)
    assert "run fashion." in drawn("S2", runs)[1]
    assert all("run digits." in drawn(name, runs)[1] for name in ("S3", "S4"))  # there is no CIFAR10-DVS
    write_run(tmp_path / "dvs", (0.3,), data="CIFAR10DVS", frames=8)
    runs = find_runs(tmp_path)
    assert all("run dvs." in drawn(name, runs)[1] for name in ("S1", "S3", "S4"))
    shutil.rmtree(tmp_path / "dvs")
    runs = find_runs(tmp_path)
    assert [a.get_title(loc="left").split("\n")[0] for a in drawn("6", runs)[0].axes] == [
        "Fashion-MNIST",
        "scikit-learn digits",
    ]


@pytest.mark.parametrize("epochs", [32, 33], ids=["with markers", "without"])
def test_thirty_two_curves_of_a_panel_look_different(epochs):
    ax = Figure().add_subplot()
    for i in range(32):
        _draw_mean(ax, i, range(epochs), np.zeros(epochs), f"setting {i}", 1)
    looks = {(line.get_color(), line.get_linestyle()) for line in ax.lines}
    assert len(looks) == 32
    assert all((line.get_marker() in tuple(MARKERS)) == (epochs == 32) for line in ax.lines)


def test_figure_5b_shows_the_winners_of_the_pool(runs, monkeypatch):
    """A pool that takes the first connects the first neuron that fired at every step."""
    monkeypatch.setattr(network, "SpikeMaxPool2d", lambda ties: SpikeMaxPool2d("first"))
    figure, _ = drawn("5b", runs)
    lines = figure.axes[0].lines
    stems = [line.get_xydata() for line in lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 1.2]
    grey = [line for line in lines if line.get_marker() == "|" and line.get_color() != COLOURS[0]]
    fired = {t: max(y for line in grey for x, y in line.get_xydata() if x == t) for (t, _), _ in stems}
    assert stems
    assert {t: y for (t, y), _ in stems} == fired


def test_a_spike_lifts_the_potential_by_its_weight_over_tau():
    (ax,) = drawn("2", [])[0].axes
    lifted = {line.get_label().split(" (")[0]: max(line.get_ydata()[: 20 * STEPS_PER_MS]) for line in ax.lines}
    expected = {label: w / (TAU_MS * t) for label, w, t in RESPONSES}
    assert lifted.keys() == expected.keys()
    for label, height in expected.items():
        assert lifted[label] == pytest.approx(height, rel=1e-6)


def test_figure_2_has_a_spike_at_each_time_that_its_caption_names():
    figure, caption = drawn("2", [])
    named = [float(text) for text in re.search(r"spikes at ([\d, and]+) ms", caption)[1].replace("and", ",").split(",")]
    for line in figure.axes[0].lines:
        jumps = np.diff(line.get_ydata(), prepend=0.0) > 0
        assert line.get_xdata()[jumps] == pytest.approx([at + 1 / STEPS_PER_MS for at in named])


# --- a recording


def test_a_recording_is_drawn(tmp_path, capsys):
    path = writers.write_file(tmp_path / "hand.raw", writers.evt3_bytes(writers.events_of(3000, 0, 48, 64), 48, 64))
    main(["figures", "--recording", str(path), "--out", str(tmp_path / "pictures")])
    out = capsys.readouterr().out
    assert {file.name for file in (tmp_path / "pictures").iterdir()} == {
        f"recording-{tmp_path.name}-hand.{kind}" for kind in ("pdf", "png")
    }
    assert "hand.raw: 3,000 events in " in out
    assert "48x64 pixels (height x width). Above" in out
    image = Image.open(tmp_path / f"pictures/recording-{tmp_path.name}-hand.png")
    assert image.size[0] > 900
    assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 200


def test_values_of_layers_have_a_row_for_each_setting_whatever_is_recorded(tmp_path):
    for name, neuron in (("a", "plif"), ("b", "lif")):
        run = write_run(tmp_path / name, neuron=neuron)
        lines = run.metrics.read_text().splitlines()
        norms = ["grad_norm/conv1", "0.5", "0.25", "0.125"]
        run.metrics.write_text("\n".join(f"{line},{norm}" for line, norm in zip(lines, norms, strict=True)) + "\n")
    figure, _ = drawn("layers", find_runs(tmp_path))
    shown = [[ax for ax in row if ax.get_visible()] for row in np.array(figure.axes).reshape(2, 3)]
    assert [[ax.get_ylabel() for ax in row] for row in shown] == [
        ["tau\n[time-steps]", "firing rate\n[per neuron and step]", "grad_norm"]
    ] * 2
    assert [row[0].get_title("left").rpartition(", ")[2] for row in shown] == ["tau_0 = 2", "tau = 2"]
    (line,) = shown[0][2].lines
    assert [*line.get_xdata()] == [1, 2, 3]
    assert [*line.get_ydata()] == [0.5, 0.25, 0.125]
    table = layer_table(find_runs(tmp_path))
    assert table.columns[-1] == "grad_norm"
    assert [row[-1] for row in table.rows] == ["0.25", "", "0.25", ""]  # in the best epoch, the second
    assert read_runs(tmp_path)["grad_norm.conv1"].tolist() == [0.25, 0.25]


def test_a_layer_has_its_colour_in_every_panel_and_the_legend_has_all_layers(tmp_path):
    run = write_run(tmp_path / "a")
    lines = run.metrics.read_text().splitlines()
    delays = ["delay/delay1", "3.5", "3.25", "3.0"]
    run.metrics.write_text("\n".join(f"{line},{delay}" for line, delay in zip(lines, delays, strict=True)) + "\n")
    figure, _ = drawn("layers", find_runs(tmp_path))
    colours = {}
    for ax in figure.axes:
        for line in ax.lines:
            colours.setdefault(line.get_label(), set()).add(line.get_color())
    assert {*colours} == {"conv1", "fc1", "delay1"}
    assert all(len(of_layer) == 1 for of_layer in colours.values())
    assert len(set.union(*colours.values())) == 3
    assert {text.get_text() for text in figure.axes[0].get_legend().get_texts()} == {*colours}


def test_more_settings_than_line_styles_get_separate_panels(tmp_path):
    for i in range(5):
        write_run(tmp_path / f"{i}", init_tau=2.0 + i)
    figure, _ = figure_7(find_runs(tmp_path))
    assert len([ax for ax in figure.axes if ax.get_visible()]) == 5
    for i in range(5, 10):
        write_run(tmp_path / f"{i}", init_tau=2.0 + i)
    figure, _ = figure_6(find_runs(tmp_path))
    strong = [line for line in figure.axes[0].lines if line.get_label()[0] != "_"]
    styles = {(line.get_color(), line.get_linestyle(), line.get_fillstyle()) for line in strong}
    assert len(strong) == len(styles) == 10


def test_a_rerun_that_was_not_tested_leaves_the_tested_run_in_figures(tmp_path):
    for name, started, test in (("tested", 1.0, 0.8), ("rerun", 2.0, None)):
        write_run(tmp_path / name, validation="holdout", test=test, started=started)
    runs = find_runs(tmp_path)
    ((_, group),) = by_panel(runs, lambda run: True)[panel_of(runs[0])]
    assert [run.name for run in group] == ["tested"] == [run.name for of in groups(runs) for run in of.runs]


def test_long_texts_are_shortened_and_formulas_escaped():
    assert shorten("a  b\n c", 5) == "a b c"
    assert shorten("abcdef", 5) == "abcd\u2026"
    assert literal("$x$ and more", 6) == "\\$x\\$ a\u2026"


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 1), (3, 2), (5, 3)])
def test_panels_have_equal_heights_and_two_stand_in_a_row(count, rows):
    figure, panels = new_panels(count, height=2.5)
    assert len(panels) == count
    assert tuple(figure.get_size_inches()) == pytest.approx((WIDTH, 2.5 * rows))
    assert sum(ax.get_visible() for ax in figure.axes) == count
