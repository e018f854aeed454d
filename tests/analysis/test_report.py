"""The report page: everything in one file, nothing from runs taken for HTML, and a browser shows it."""

import re

import pytest

from plif_lightning.analysis.report import write_report
from plif_lightning.runs.run import find_runs
from tests.writers import edit_session, write_run

ATTACK = "<script>window.attacked = 1</script><img src=x onerror='window.attacked=1'>"


def report(tmp_path):
    runs = find_runs(tmp_path / "runs")
    write_report(runs, tmp_path / "report.html")
    return tmp_path / "report.html"


def rows_of(page, section="runs"):
    table = page.read_text().split(f'id="{section}"')[1].split("</table>")[0]
    rows = table.split("<tbody>")[1].split("<tr>")[1:]
    return [[re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)] for row in rows]


def some_runs(folder):
    write_run(folder / "a", (0.5, 0.75, 0.7), frames=8)
    write_run(folder / "b", (0.5, 0.95), init_tau=16.0, seed=3)
    write_run(folder / "c", data="NMNIST", finished=False)


@pytest.fixture(scope="module")
def page_of_some_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("some_runs")
    some_runs(folder / "runs")
    return report(folder)


def test_the_page_asks_nobody_for_anything(page_of_some_runs):
    text = page_of_some_runs.read_text()
    assert not re.search(r"""(src|href)=(?!["']?(data:|#))""", text)
    assert "@import" not in text
    assert "<script" not in text


def test_the_page_opens_with_settings_and_holds_figures_runs_and_commands(page_of_some_runs):
    text = page_of_some_runs.read_text()
    sections = re.findall(r'<section id="(\w+)"', text)
    assert sections == ["settings", "figures", "runs", "tables", "details", "problems"]
    settings = rows_of(page_of_some_runs, "settings")
    assert [(row[1], row[5]) for row in settings] == [("PLIF, tau_0 = 16", "95.00"), ("PLIF, tau_0 = 2", "75.00")]
    b, a, c = rows_of(page_of_some_runs)
    assert (a[1], a[3], a[4], a[-1]) == ("PLIF, tau_0 = 2", "75.00", "2", "a")
    assert (b[1], b[2], b[3], b[-1]) == ("PLIF, tau_0 = 16", "3", "95.00", "b")
    assert (c[0], c[6]) == ("N-MNIST", "failed")
    assert "python main.py fit --config fashionmnist" in text
    names = re.findall(r'<summary>(\w+)</summary><pre id="(run-\d+)">', text)
    assert [name for name, _ in names] == ["a", "b", "c"]
    assert all(text.count(f'href="#{anchor}" title="{name}"') >= 2 for name, anchor in names[:2])
    for name in ("6", "7", "layers", "S2"):  # S2: spikes of a recorded sample
        assert f"<figcaption>Figure {name}. " in text
    # Only the paper's tables with a run.
    assert re.findall(r"<h3>Table (\w+)", text) == ["2", "4", "5"]


def test_names_and_configurations_are_not_html(tmp_path, monkeypatch):
    monkeypatch.setattr("plif_lightning.analysis.report.FIGURES", {})
    run = write_run(tmp_path / "runs" / "<b>bold", title=ATTACK, data="Other", origin="</script>" + ATTACK)
    run.config.write_text(run.config.read_text() + f'note: "{ATTACK}"\n')
    edit_session(run, arguments=["fit", ATTACK])
    text = report(tmp_path).read_text()
    assert ATTACK not in text
    assert "<b>bold" not in text
    assert "&lt;script&gt;" in text


def test_report_names_unreadable_runs_and_shows_the_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("plif_lightning.analysis.report.FIGURES", {})
    some_runs(tmp_path / "runs")
    (tmp_path / "runs" / "b" / "config.yaml").write_text("{")
    page = report(tmp_path)
    assert len(rows_of(page)) == 3
    assert "config.yaml cannot be read" in page.read_text()
    assert "note: " in capsys.readouterr().err


def test_a_browser_shows_it_on_a_phone_and_on_a_dark_screen(browser, page_of_some_runs):
    page, said = browser.new_page(viewport={"width": 390, "height": 800}), []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{page_of_some_runs.as_uri()}#details")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate("Math.abs(document.getElementById('details').getBoundingClientRect().top) < innerHeight")
    assert page.locator("section img:not([alt])").count() == 0
    page.set_viewport_size({"width": 1300, "height": 900})
    assert page.evaluate("(w => w.scrollWidth - w.clientWidth)(document.querySelector('#settings .wide'))") == 0
    tops = page.evaluate("[...document.querySelectorAll('figure')].map(f => f.getBoundingClientRect().top)")
    assert tops[0] == tops[1]  # two abreast
    page.locator("#settings a").first.click()
    assert "neuron: plif" in page.locator("details[open] pre").inner_text()
    assert said == []
    dark = browser.new_page(color_scheme="dark")
    dark.goto(page_of_some_runs.as_uri())
    first = dark.locator("figure img").first
    first.scroll_into_view_if_needed()
    dark.wait_for_function("i => i.complete && i.naturalWidth", arg=first.element_handle())
    corner = (
        "i => { const c = document.createElement('canvas'); c.width = c.height = 1; const g = c.getContext('2d');"
        "g.drawImage(i, 0, 0); return [...g.getImageData(0, 0, 1, 1).data] }"
    )
    assert first.evaluate(corner) == [255, 255, 255, 255]  # figures keep their white ground
