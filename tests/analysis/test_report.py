"""The report page: everything in one file, nothing from runs taken for HTML, and it works in a browser."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import yaml

from plif_lightning.analysis.report import _curves, write_report
from plif_lightning.analysis.searches import search_figure
from plif_lightning.analysis.tables import result_tables
from plif_lightning.cli import main
from plif_lightning.runs.process import process_identity
from plif_lightning.runs.reading import find_runs
from plif_lightning.runs.searches import SearchRecord, Trial, write_search
from tests.writers import write_run

ATTACK = "<script>window.attacked = 1</script><img src=x onerror='window.attacked=1'>"


def report(tmp_path):
    runs = find_runs(tmp_path / "runs")
    write_report(runs, result_tables(runs), tmp_path / "report.html")
    return tmp_path / "report.html"


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])


def some_runs(folder):
    write_run(folder / "a", (0.5, 0.75, 0.7), frames=8)
    write_run(folder / "b", (0.5, 0.95), init_tau=16.0, seed=3)
    write_run(folder / "c", data="NMNIST", finished=False)


@pytest.fixture(scope="module")
def page_of_some_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("some_runs")
    some_runs(folder / "runs")
    return report(folder)


@pytest.fixture
def without_figures(monkeypatch):
    """Drawing them, twice each, takes most of a page's time; for tests of what else is on it."""
    monkeypatch.setattr("plif_lightning.analysis.report.FIGURES", {})


def test_the_page_asks_nobody_for_anything(page_of_some_runs):
    text = page_of_some_runs.read_text()
    assert not re.search(r"""(src|href)=(?!["']?(data:|#))""", text)
    assert "@import" not in text
    assert "fetch(" not in text


def test_the_page_holds_all_runs_curves_and_samples(page_of_some_runs):
    data = data_of(page_of_some_runs)
    a, b, c = data["runs"]
    assert (a["name"], a["accuracy"], a["best_epoch"], b["label"], c["status"]) == (
        "a", 75.0, 2, "PLIF, tau_0 = 16", "unfinished",
    )  # fmt: skip
    assert a["curves"]["accuracy"] == [50.0, 75.0, 70.0]
    assert a["rates"] == {"conv1": 0.1, "fc1": 0.02}
    assert "python main.py fit --config configs/fashionmnist.yaml" in a["command"]
    assert [s["label"] for s in data["samples"]] == ["boot", "bag"]


def test_names_and_configurations_are_not_html(tmp_path):
    run = write_run(tmp_path / "runs" / "<b>bold", title=ATTACK, data="Other", origin="</script>" + ATTACK)
    run.config.write_text(run.config.read_text() + f'note: "{ATTACK}"\n')
    run.command.write_text(json.dumps({"arguments": ["fit", ATTACK]}))
    text = report(tmp_path).read_text()
    assert ATTACK not in text
    assert "<b>bold" not in text
    assert text.count("</script>") == 2
    assert data_of(tmp_path / "report.html")["runs"][0]["command"].endswith(
        f"fit '{ATTACK.replace(chr(39), chr(39) + chr(34) + chr(39) + chr(34) + chr(39))}'"
    )


def test_what_cannot_be_read_stands_on_the_page_and_the_rest_is_there(tmp_path, capsys, without_figures):
    some_runs(tmp_path / "runs")
    (tmp_path / "runs" / "a" / "samples.npz").write_bytes(b"PK")
    (tmp_path / "runs" / "b" / "config.yaml").write_text("{")
    data = data_of(report(tmp_path))
    assert len(data["runs"]) == 3
    assert any("samples.npz cannot be read" in problem for problem in data["problems"])
    assert any("config.yaml cannot be read" in problem for problem in data["problems"])
    assert "note: " in capsys.readouterr().err


def test_long_curves_keep_their_validations_and_the_best(tmp_path, without_figures):
    run = write_run(tmp_path / "runs" / "a", tuple(i / 2000 for i in range(1000)))
    lines = run.metrics.read_text().splitlines()
    kept = [",".join([*line.split(",")[:2], "" if i % 5 else line.split(",")[2], *line.split(",")[3:]])
            for i, line in enumerate(lines[1:])]  # fmt: skip
    kept[740] = kept[740].replace(",0.37,", ",0.9,")
    run.metrics.write_text("\n".join([lines[0], *kept]) + "\n")
    curves = _curves(find_runs(tmp_path / "runs")[0])
    assert len(curves["epoch"]) <= 201
    accuracies = [value for value in curves["accuracy"] if value is not None]
    assert len(accuracies) >= 190
    assert accuracies[0] == 0
    assert max(accuracies) == 90


def test_long_curves_are_thinned_to_what_a_screen_shows(tmp_path, without_figures):
    write_run(tmp_path / "runs" / "a", tuple(i / 2000 for i in range(1024)))
    curve = data_of(report(tmp_path))["runs"][0]["curves"]
    assert len(curve["epoch"]) == 200
    assert (curve["epoch"][0], curve["epoch"][-1]) == (1, 1024)


# --- in a browser


def opened(browser, path, width=1280):
    page = browser.new_page(viewport={"width": width, "height": 900})
    said = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    return page, said


def first_column(page):
    return [row.inner_text() for row in page.locator("#comparison tbody tr td:nth-child(2)").all()]


def test_sorting_filter_curves_and_time_slider_work(browser, tmp_path, without_figures):
    some_runs(tmp_path / "runs")
    page, said = opened(browser, report(tmp_path))
    page.get_by_role("button", name="accuracy A or B [%]").press("Enter")
    assert first_column(page)[0] == "b"
    assert page.locator("th[aria-sort=descending]").inner_text() == "accuracy A or B [%]"
    page.get_by_role("button", name="accuracy A or B [%]").click()
    assert first_column(page)[-1] == "b"
    page.get_by_label("Filter").fill("n-mnist UNFINISHED")
    page.get_by_label("Filter").fill("nmnist unfinished")
    assert page.locator("#count").inner_text() in ("1 of 3 runs", "0 of 3 runs")
    page.get_by_label("Filter").fill("16")
    assert first_column(page) == ["b"]
    page.locator("#plot").focus()
    page.locator("#plot").press("ArrowRight")
    page.locator("#plot").press("ArrowRight")
    assert page.locator("#readout").inner_text().startswith("epoch 2:")
    assert "Fashion-MNIST: PLIF, tau_0 = 16 95" in page.locator("#readout").inner_text()
    page.locator("#metric").select_option("tau")
    texts = page.locator("#plot text").all_text_contents()
    assert "tau of each layer [time-steps], logarithmic" in texts
    assert {"2", "5", "10"} <= set(texts)
    page.locator("#plot").hover()
    assert "PLIF, tau_0 = 2: conv1" in page.locator("#readout").inner_text()
    before = page.locator(".maps canvas").nth(1).evaluate("c => c.toDataURL()")
    slider = page.get_by_role("slider")
    for _ in range(7):
        slider.press("ArrowRight")
    assert page.locator("output").inner_text() == "t = 7 of 7"
    assert page.locator(".maps canvas").nth(1).evaluate("c => c.toDataURL()") != before
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("document.querySelector('output').textContent !== 't = 7 of 7'", timeout=60_000)
    page.locator("details").first.locator("summary").click()
    assert "python main.py fit" in page.locator("details pre").first.inner_text()
    assert said == []


def test_seeds_are_a_band_and_a_part_of_the_epochs_can_be_seen(browser, tmp_path, without_figures):
    for seed in (1, 2):
        write_run(tmp_path / "runs" / str(seed), tuple(0.1 * seed + 0.05 * i for i in range(10)), seed=seed)
    page, said = opened(browser, report(tmp_path))
    assert page.locator("#plot .band").count() == 1
    assert "PLIF, tau_0 = 2 (2 seeds)" in page.locator("#readout").inner_text()
    page.locator("#seeds").select_option("1")
    assert page.locator("#plot .band").count() == 0
    assert "PLIF, tau_0 = 2, 2" in page.locator("#readout").inner_text()
    box = page.locator("#plot").bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + 100)
    page.mouse.up()
    epochs = {int(text) for text in page.locator("#plot text").all_text_contents() if text in map(str, range(1, 11))}
    assert min(epochs) >= 5
    page.get_by_role("button", name="All epochs").click()
    assert "2" in page.locator("#plot text").all_text_contents()
    assert said == []


def test_events_are_played_beside_the_spikes(browser, tmp_path, without_figures):
    write_run(tmp_path / "runs" / "a", frames=8)
    page, said = opened(browser, report(tmp_path))
    pixels = "c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
    lit = f"c => [...{pixels}].filter((v, i) => i % 4 < 3 && v).length / 3"
    assert page.locator("#film").evaluate(lit) == 1  # one event of ten in each of eight steps
    page.get_by_label("Sample").select_option("1")
    assert page.locator("#film").evaluate(lit) == 3  # of thirty
    events = data_of(tmp_path / "report.html")["samples"][1]["events"]
    assert (events["width"], events["height"], events["every"]) == (7, 6, 1)
    assert events["bounds"] == [0, 3, 6, 9, 12, 15, 18, 21, 30]
    before = page.locator("#film").evaluate("c => c.toDataURL()")
    page.get_by_role("button", name="Play").click()
    page.wait_for_function(
        "before => document.getElementById('film').toDataURL() !== before", arg=before, timeout=60_000
    )
    assert said == []


def test_accuracy_is_rounded_once_and_a_running_run_is_no_error(browser, tmp_path, without_figures):
    write_run(tmp_path / "runs" / "a", (0.239550001,))
    run = write_run(tmp_path / "runs" / "b", finished=False)
    command = json.loads(run.command.read_text())
    run.command.write_text(json.dumps({**command, **process_identity()}))
    page, _ = opened(browser, report(tmp_path))
    cells = page.locator("#comparison tbody tr td:nth-child(3)").all_inner_texts()
    assert cells[0] == f"{100 * 0.239550001:.2f}" == "23.96"
    assert page.locator("#comparison td.going").inner_text() == "running"
    assert page.locator("#comparison td.bad").count() == 0


def test_figures_keep_their_place_and_are_dark_on_a_dark_page(browser, page_of_some_runs):
    path = page_of_some_runs
    page, _ = opened(browser, path)
    images = page.locator("figure img").all()
    assert images
    for image in images:
        assert image.get_attribute("width").isdigit()
        assert image.get_attribute("height").isdigit()
    page.goto(f"{path.as_uri()}#details")
    assert page.evaluate("Math.abs(document.getElementById('details').getBoundingClientRect().top) < innerHeight")
    dark = browser.new_page(color_scheme="dark")
    dark.goto(path.as_uri())
    first = dark.locator("figure img").first
    first.scroll_into_view_if_needed()
    dark.wait_for_function("i => i.complete && i.naturalWidth", arg=first.element_handle())
    corner = (
        "i => { const c = document.createElement('canvas'); c.width = c.height = 1; const g = c.getContext('2d');"
        "g.drawImage(i, 0, 0); return [...g.getImageData(0, 0, 1, 1).data] }"
    )
    assert first.evaluate(corner) == [0x1B, 0x1F, 0x24, 255]


def test_it_fits_a_phone_and_nothing_in_it_runs(browser, tmp_path):
    some_runs(tmp_path / "runs")
    write_run(tmp_path / "runs" / "z<u>", title=ATTACK, data="Other")
    page, said = opened(browser, report(tmp_path), width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("window.attacked") is None
    accuracy = page.locator("#comparison tbody tr td:nth-child(3)").first.bounding_box()
    assert accuracy["x"] + accuracy["width"] < 390
    assert page.locator("section img:not([alt])").count() == 0
    assert said == []


def test_a_hundred_runs_are_shown(browser, tmp_path):
    for i in range(100):
        write_run(tmp_path / "runs" / f"version_{i}", tuple(j / 200 for j in range(100)), seed=i)
    path = report(tmp_path)
    page, said = opened(browser, path)
    assert len(first_column(page)) == 100
    assert said == []


def test_what_runs_share_is_said_once(tmp_path, without_figures):
    for name, more in (("a", {}), ("b", {"init_tau": 16.0}), ("c", {"pooling": "avg"})):
        run = write_run(tmp_path / "runs" / name, **more)
        config = yaml.safe_load(run.config.read_text().replace("per_step", "rate"))
        config["data"]["init_args"]["batch_size"] = 8 if name == "c" else 16
        run.config.write_text(yaml.safe_dump(config))
    data = data_of(report(tmp_path))
    assert data["shared"] == {"Fashion-MNIST": "loss rate"}
    assert [run["label"] for run in data["runs"]] == [
        *("PLIF, tau_0 = 2", "PLIF, tau_0 = 16", "PLIF, tau_0 = 2, avg-pooling, batch_size 8")
    ]
    shutil.rmtree(tmp_path / "runs" / "b")
    shutil.rmtree(tmp_path / "runs" / "c")
    data = data_of(report(tmp_path))
    assert data["shared"] == {}
    assert data["runs"][0]["label"] == "PLIF, tau_0 = 2, loss rate"


def a_search(**changes):
    space = [(2.0, 1e-3, "plif", 0.9), (4.0, 1e-2, ATTACK, 0.8), (8.0, 1e-4, "lif", None)]
    found = [
        Trial(f"{i:04d}", "failed" if value is None else "finished", value, {"tau": tau, "lr": lr, "neuron": neuron})
        for i, (tau, lr, neuron, value) in enumerate(space)
    ]
    record = SearchRecord(
        "mine", "bayes", "val/acc", True, found, ["lr"], {"tau": 0.75}, f"python main.py fit {ATTACK}"
    )
    return replace(record, **changes)


def test_a_search_is_shown_with_its_ranking_importance_and_best_command(tmp_path, without_figures):
    write_run(tmp_path / "runs" / "s" / "0000")
    write_search(tmp_path / "runs" / "s", a_search())
    assert main(["report", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "r.html")]) is None
    text = (tmp_path / "r.html").read_text()
    section = text[text.index('<section id="searches">') :].split("</section>")[0]
    assert "mine: bayes search, val/acc, highest first" in section
    assert section.index("90.00 %") < section.index("80.00 %")
    assert "fANOVA): tau 75 %" in section
    assert "The best run: python main.py fit" in section
    assert section.count("<picture>") == 1
    assert ATTACK not in text
    assert '<a href="#searches">' in text


def test_without_a_search_there_is_no_section(page_of_some_runs):
    assert "searches" not in page_of_some_runs.read_text()


def test_each_parameter_that_varies_is_a_panel_of_a_searchs_figure():
    figure, _ = search_figure(a_search())
    assert [ax.get_xlabel() for ax in figure.axes if ax.get_visible()] == ["tau", "lr", "neuron"]
    assert figure.axes[1].get_xscale() == "log"
    assert [list(line.get_ydata()) for ax in figure.axes[:3] for line in ax.lines] == [[90, 80]] * 3
    assert search_figure(a_search(trials=a_search().trials[1:])) is None


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"trials": 3}', '{"trials": [{"run": 1}], "name": "x"}', '{"trials": [], "name": "x"}']
)
def test_a_damaged_search_is_named_and_the_page_made(tmp_path, text, without_figures, capsys):
    write_run(tmp_path / "runs" / "s" / "0000")
    (tmp_path / "runs" / "s" / "search.json").write_text(text)
    main(["report", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "r.html")])
    assert "search.json" in capsys.readouterr().err
    assert (tmp_path / "r.html").is_file()
