"""The interactive map in a real browser: no errors, recipes on hovering, neighbours on clicking, a working filter."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.viz.browser import MISSING, NO_AXE, accessibility_faults, axe_file, browser_files, open_browser, show_as
from weightsearch.distance import prepare
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.evaluation import block_means
from weightsearch.html_template import render_html
from weightsearch.metrics import score
from weightsearch.search.index import query
from weightsearch.search.wording import recipe_text
from weightsearch.training.summary import TrainSummary
from weightsearch.viz import Projection, draw_map, report
from weightsearch.viz.figures import Options
from weightsearch.viz.map import PALETTE_DARK, PALETTE_LIGHT, interactive, scale_of
from weightsearch.viz.projection import nearest
from weightsearch.viz.sources import Source, open_sources
from weightsearch.viz.style import DARK, LIGHT, MARK

in_browser = pytest.mark.skipif(browser_files() is None, reason=MISSING)


@pytest.fixture(scope="module")
def source(trained: TrainSummary) -> Source:
    (opened,) = open_sources(trained.index)
    return opened


@pytest.fixture(scope="module")
def written(trained: TrainSummary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("map") / "map.html"
    return draw_map(trained.index, path, projection=Projection.PCA, quiet=True)


def data_of(path: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)
    assert found
    return json.loads(found[1])


def test_the_file_needs_no_network(written: Path):
    text = written.read_text()
    assert not re.search(r'(src|href)="(?!data:)', text)
    assert "@import" not in text
    assert len(text) < 1_000_000


def test_the_file_holds_every_network_and_its_neighbours(written: Path, source: Source):
    import base64

    data = data_of(written)
    (described,), (drawn,) = data["sources"], data["maps"]
    columns = {column["name"]: column for column in described["columns"]}
    accuracy = np.frombuffer(base64.b64decode(columns["test_accuracy"]["data"]), "<f4")
    assert accuracy == pytest.approx(source.values)
    assert {"train_loss", "epoch", "split", "optimizer", "learning_rate"} <= set(columns)
    assert columns["learning_rate"]["log"]
    recipe = np.frombuffer(base64.b64decode(described["recipe"]), "<i4")
    for position in (0, len(accuracy) // 2):
        expected = recipe_text(json.loads(source.columns["recipe"][position]))
        assert described["recipes"][recipe[position]] == expected
    near = np.frombuffer(base64.b64decode(drawn["near"]), "<i4").reshape(len(accuracy), -1)
    vectors = prepare(source.vectors(source.methods[0], np.arange(len(accuracy))), source.metric)
    far = np.frombuffer(base64.b64decode(drawn["far"]), "<f4").reshape(near.shape)
    assert not (near == np.arange(len(near))[:, None]).any()
    assert far == pytest.approx(nearest(vectors, vectors, near.shape[1] + 1, source.metric)[1][:, 1:], abs=1e-5)


def test_no_text_ends_the_script_or_is_taken_for_a_placeholder(source: Source, monkeypatch: pytest.MonkeyPatch):
    named = np.array([f"</script><b>{{code}}{run}" for run in range(len(source.values))], object)
    monkeypatch.setitem(source.columns, "run", named)
    text = interactive([source], Options(projection=Projection.PCA), lambda _: None)
    assert text.count("</script>") == 3
    assert "\\u003c/script\\u003e\\u003cb\\u003e{code}" in text
    about = {"style": "", "version": "", "date": "", "generations": "", "sections": []}
    page = render_html("report.html", title="a < b {data}", dark=False, **about)
    assert "<title>a &lt; b {data}</title>" in page


@pytest.fixture(scope="module")
def browser(written: Path) -> Iterator[Any]:
    with open_browser() as opened:
        opened.set_script_timeout(60)
        yield opened


@pytest.fixture
def opened(browser: Any, written: Path) -> Any:
    browser.get(written.as_uri())
    browser.execute_async_script("weightsearchMap.ready.then(arguments[0], arguments[0])")
    return browser


def coloured(browser: Any) -> int:
    """How many pixels of the picture are not grey, as points are."""
    element = browser.find_element("id", "points")
    pixels = np.asarray(Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")).astype(int)
    return int((np.ptp(pixels, axis=2) > 40).sum())


def errors(browser: Any) -> list[Any]:
    """What the console says; not what the renderer says of its own speed when a test reads its pixels."""
    return [entry for entry in browser.get_log("browser") if entry["source"] != "rendering"]


def eventually(condition: Any) -> Any:
    deadline = time.monotonic() + 20
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def point_at(browser: Any, position: tuple[float, float]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    picture = browser.find_element("id", "picture")
    middle = picture.rect["width"] / 2, picture.rect["height"] / 2
    for away in (25, 0):
        x, y = (round(where - centre + away) for where, centre in zip(position, middle, strict=True))
        ActionChains(browser, duration=50).move_to_element_with_offset(picture, x, y).perform()


@in_browser
@pytest.mark.slow
def test_the_map_loads_hovers_clicks_and_filters(opened: Any, source: Source):
    from selenium.webdriver.common.action_chains import ActionChains

    assert errors(opened) == []
    total = len(source.values)
    count = opened.find_element("id", "count")
    assert count.text == f"{total} of {total} networks drawn"
    whole = eventually(lambda: coloured(opened))
    assert whole > 200

    best = int(np.argmax(source.values))
    positions = opened.execute_script(
        "return [...Array(arguments[0]).keys()].map((i) => weightsearchMap.scatterplot.getScreenPosition(i))", total
    )
    point_at(opened, positions[best])
    tip = opened.find_element("id", "tip")
    assert eventually(lambda: tip.text)
    hovered = opened.execute_script("return weightsearchMap.state.hovered")
    assert np.hypot(*np.subtract(positions[hovered], positions[best])) < 5  # it, or one that lies over it
    assert recipe_text(json.loads(source.columns["recipe"][hovered])) in tip.text
    assert f"test accuracy {source.values[hovered]:.3f}" in tip.text

    ActionChains(opened).click().perform()
    side = opened.find_element("id", "side")
    assert eventually(lambda: side.text.startswith("This network"))
    vectors = prepare(source.vectors(source.methods[0], np.arange(total)), source.metric)
    chosen = opened.execute_script("return weightsearchMap.state.chosen")
    _, distances = nearest(vectors[[chosen]], vectors, 2, source.metric)
    assert f"distance {distances[0, 1]:.4f}" in side.text

    most = float(np.quantile(source.values, 0.9))
    opened.execute_script(
        "const low = document.getElementById('low'); low.value = arguments[0]; low.dispatchEvent(new Event('input'))",
        1000 * most,
    )
    kept = int((source.values >= round(most * 1000) / 1000).sum())
    assert count.text == f"{kept} of {total} networks drawn"
    assert opened.execute_script("return weightsearchMap.scatterplot.get('filteredPoints').length") == kept
    assert eventually(lambda: coloured(opened) < 0.9 * whole)
    assert errors(opened) == []


@in_browser
@pytest.mark.slow
def test_the_map_is_coloured_by_any_column(opened: Any):
    from selenium.webdriver.support.select import Select

    select = Select(opened.find_element("id", "colour"))
    names = [option.text for option in select.options]
    assert {"test accuracy", "train loss", "optimizer", "learning rate", "epoch"} <= set(names)
    for name in names:
        select.select_by_visible_text(name)
        assert eventually(lambda name=name: opened.find_element("id", "legend").text.startswith(name)), name
    assert errors(opened) == []


@in_browser
@pytest.mark.slow
def test_every_network_is_on_a_phone_and_the_picture_fills_the_screen(opened: Any, source: Source):
    for width, height in ((390, 844), (1440, 900)):
        opened.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        opened.refresh()
        opened.execute_async_script("weightsearchMap.ready.then(arguments[0], arguments[0])")
        positions, size = opened.execute_script(
            "const picture = document.getElementById('picture');"
            "return [[...Array(arguments[0]).keys()].map((i) => weightsearchMap.scatterplot.getScreenPosition(i)),"
            " [picture.clientWidth, picture.clientHeight]]",
            len(source.values),
        )
        positions = np.array(positions)
        assert (positions >= 0).all()
        assert (positions <= size).all()
        assert (np.ptp(positions, axis=0) > 0.85 * np.array(size)).all()
        assert opened.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@in_browser
@pytest.mark.slow
def test_search_legend_and_keys_choose_and_what_is_filtered_out_is_not_chosen(opened: Any, source: Source):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.select import Select

    count, side = opened.find_element("id", "count"), opened.find_element("id", "side")
    id = str(source.columns["id"][7])
    search = opened.find_element("id", "search")
    search.send_keys(id[:12])
    assert eventually(lambda: count.text.startswith("1 of "))
    search.send_keys(Keys.ENTER)
    opened.switch_to.active_element.send_keys(Keys.ENTER)
    assert eventually(lambda: side.text.startswith("This network"))
    assert id[:12] in side.text
    search.clear()
    search.send_keys("no such run")
    assert eventually(lambda: count.text.startswith("0 of "))
    assert side.text.startswith("A map of networks")
    search.send_keys(Keys.CONTROL, "a")
    search.send_keys(Keys.DELETE)
    Select(opened.find_element("id", "colour")).select_by_visible_text("optimizer")
    buttons = eventually(lambda: opened.find_elements("css selector", "#legend button"))
    left_out = buttons[0].text
    buttons[0].click()
    recipes = [json.loads(text)["optimizer"] for text in source.columns["recipe"]]
    kept = sum(one != left_out for one in recipes)
    assert eventually(lambda: count.text == f"{kept} of {len(recipes)} networks drawn")
    points = opened.find_element("id", "points")
    points.send_keys(Keys.ARROW_RIGHT)
    assert eventually(lambda: side.text.startswith("This network"))
    chosen = opened.execute_script("return weightsearchMap.state.chosen")
    assert recipes[chosen] != left_out
    points.send_keys(Keys.ESCAPE)
    assert eventually(lambda: side.text.startswith("A map of networks"))
    assert errors(opened) == []


@in_browser
@pytest.mark.slow
def test_a_file_is_a_star_among_its_neighbours(browser: Any, source: Source, trained: TrainSummary, tmp_path: Path):
    example = trained.examples[0].path
    path = draw_map(trained.index, tmp_path / "map.html", projection="pca", networks=[example], quiet=True)
    browser.get(path.as_uri())
    browser.execute_async_script("weightsearchMap.ready.then(arguments[0], arguments[0])")
    answer = query(trained.index, example, k=8)
    side = eventually(lambda: browser.find_element("id", "side").text)
    assert f"★ {example.name}" in side
    for row in answer.neighbours:
        assert row.id[:12] in side
    assert browser.find_element("id", "count").text.startswith(f"{len(source.values)} of {len(source.values)} ")
    other = tmp_path / "other.pt"
    torch.save(torch.nn.Linear(3, 2).state_dict(), other)
    with pytest.raises(WeightsearchError, match="its architecture"):
        draw_map(trained.index, tmp_path / "no.html", projection="pca", networks=[other], quiet=True)


@pytest.mark.parametrize("dark", [False, True])
def test_no_colour_is_lighter_than_three_to_one(dark: bool):
    def luminance(colour: str) -> float:
        parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return float(
            np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
        )

    ground = luminance((DARK if dark else LIGHT)[0])
    for colour in (*scale_of(dark), *(PALETTE_DARK if dark else PALETTE_LIGHT), MARK):
        high, low = sorted((luminance(colour), ground), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 2.99, colour


@pytest.fixture(scope="module")
def reported(trained: TrainSummary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    (folder / "evaluation.md").write_text("# Truth\n\nSome *words*.\n\n| method | R² |\n|---|---:|\n| fc | 0.5 |\n")
    return report(trained.index, folder / "report.html", documents=[folder / "evaluation.md"], root=folder, quiet=True)


@pytest.mark.slow
def test_a_report_holds_everything(reported: Path, source: Source, trained: TrainSummary):
    text = reported.read_text()
    for figure in ("distribution", "embedding", "similarity", "training"):
        assert f'<img alt="{figure}" src="data:image/png;base64,' in text
    assert "weightsearchMap" in text
    test = source.columns["split"] == "test"
    right = '<td style="text-align: right">'
    assert f"{right}{score(source.columns['predicted_accuracy'][test], source.values[test]).r2:.3f}</td>" in text
    assert re.search(r'<td>fc</td>\s*<td style="text-align:right">0.5</td>', text)
    assert f"weightsearch train runs/zoos/digits-v1 --method {trained.method}" in text
    bad, good = source.thresholds
    everything = np.arange(len(source.values))
    vectors = source.vectors(source.methods[0], everything)
    means = block_means(vectors, source.values, good, bad)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = (unit @ unit.T)[~np.eye(len(unit), dtype=bool)]
    for value in (means.good_good, means.bad_bad, means.good_bad, pairs.mean()):
        assert f"{right}{value:+.2f}</td>" in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)


@in_browser
@pytest.mark.slow
def test_the_report_and_its_map_open_without_errors(browser: Any, reported: Path):
    browser.get(reported.as_uri())
    browser.switch_to.frame(browser.find_element("tag name", "iframe"))
    assert eventually(lambda: "networks drawn" in browser.find_element("id", "count").text)
    browser.switch_to.default_content()
    assert errors(browser) == []


@in_browser
@pytest.mark.skipif(axe_file() is None, reason=NO_AXE)
@pytest.mark.slow
def test_axe_finds_no_serious_fault_in_map_and_report(browser: Any, reported: Path):
    def check() -> None:
        for scheme, rules in (("light", ()), ("dark", ("color-contrast",))):  # all that another colour changes
            browser.execute_script("document.documentElement.className = arguments[0]", scheme)
            assert accessibility_faults(browser, *rules) == [], scheme

    show_as(browser, width=390)
    browser.get(reported.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    check()
    browser.switch_to.frame(browser.find_element("tag name", "iframe"))  # the map
    assert eventually(lambda: "networks drawn" in browser.find_element("id", "count").text)
    browser.find_element("id", "search").send_keys("adam")  # lists a selection
    assert eventually(lambda: browser.find_elements("css selector", "#table td"))
    check()
    browser.switch_to.default_content()
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_report_of_nothing_is_one_line(trained: TrainSummary, tmp_path: Path):
    with pytest.raises(UsageError, match="is a directory"):
        report(trained.index, tmp_path, quiet=True)
    with pytest.raises(UsageError, match=r"--document .*none\.md"):
        report(trained.index, tmp_path / "r.html", documents=[tmp_path / "none.md"], quiet=True)
