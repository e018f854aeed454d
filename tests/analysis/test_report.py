"""The report page: everything in one file, nothing from runs taken for HTML, and it works in a browser."""

import json
import re
import shutil

import pytest

from plif_lightning.analysis.report import write_report
from plif_lightning.analysis.tables import result_tables
from plif_lightning.runs.reading import find_runs
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


def test_the_page_asks_nobody_for_anything(tmp_path):
    some_runs(tmp_path / "runs")
    text = report(tmp_path).read_text()
    assert not re.search(r"""(src|href)=(?!["']?(data:|#))""", text)
    assert "@import" not in text
    assert "fetch(" not in text


def test_the_page_holds_all_runs_curves_and_samples(tmp_path):
    some_runs(tmp_path / "runs")
    data = data_of(report(tmp_path))
    a, b, c = data["runs"]
    assert (a["name"], a["accuracy"], a["best_epoch"], b["init_tau"], c["status"]) == ("a", 75.0, 2, 16.0, "unfinished")
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


def test_what_cannot_be_read_stands_on_the_page_and_the_rest_is_there(tmp_path, capsys):
    some_runs(tmp_path / "runs")
    (tmp_path / "runs" / "a" / "samples.npz").write_bytes(b"PK")
    (tmp_path / "runs" / "b" / "config.yaml").write_text("{")
    data = data_of(report(tmp_path))
    assert len(data["runs"]) == 3
    assert any("samples.npz cannot be read" in problem for problem in data["problems"])
    assert any("config.yaml cannot be read" in problem for problem in data["problems"])
    assert "note: " in capsys.readouterr().err


def test_long_curves_are_thinned_to_what_a_screen_shows(tmp_path):
    write_run(tmp_path / "runs" / "a", tuple(i / 2000 for i in range(1024)))
    curve = data_of(report(tmp_path))["runs"][0]["curves"]
    assert len(curve["epoch"]) == 200
    assert (curve["epoch"][0], curve["epoch"][-1]) == (1, 1024)


# --- in a browser


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


def opened(browser, path, width=1280):
    page = browser.new_page(viewport={"width": width, "height": 900})
    said = []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    return page, said


def first_column(page):
    return [row.inner_text() for row in page.locator("#comparison tbody tr td:nth-child(2)").all()]


def test_sorting_filter_curves_and_time_slider_work(browser, tmp_path):
    some_runs(tmp_path / "runs")
    page, said = opened(browser, report(tmp_path))
    page.get_by_role("button", name="accuracy [%]").press("Enter")
    assert first_column(page)[0] == "b"
    assert page.locator("th[aria-sort=descending]").inner_text() == "accuracy [%]"
    page.get_by_role("button", name="accuracy [%]").click()
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
    assert "b 95" in page.locator("#readout").inner_text()
    page.locator("#metric").select_option("tau")
    texts = page.locator("#plot text").all_text_contents()
    assert "tau of each layer [time-steps], logarithmic" in texts
    assert {"2", "5", "10"} <= set(texts)
    page.locator("#plot").hover()
    assert "a: conv1" in page.locator("#readout").inner_text()
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


def test_it_fits_a_phone_and_nothing_in_it_runs(browser, tmp_path):
    some_runs(tmp_path / "runs")
    write_run(tmp_path / "runs" / "z<u>", title=ATTACK, data="Other")
    page, said = opened(browser, report(tmp_path), width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("window.attacked") is None
    assert page.locator("section img:not([alt])").count() == 0
    assert said == []


def test_a_hundred_runs_are_shown(browser, tmp_path):
    for i in range(100):
        write_run(tmp_path / "runs" / f"version_{i}", tuple(j / 200 for j in range(100)), seed=i)
    path = report(tmp_path)
    page, said = opened(browser, path)
    assert len(first_column(page)) == 100
    assert said == []
