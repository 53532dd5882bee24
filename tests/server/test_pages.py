"""The pages of `weightsearch serve` in a headless Chromium: dropped files, the map, tables, keys, phones, dark."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.viz.browser import MISSING, NO_AXE, accessibility_faults, axe_file, browser_files, open_browser, show_as

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import uvicorn

from weightsearch.search.index import Index
from weightsearch.server import ServeOptions, create_app

REFERENCE = Path(__file__).parents[2] / "index"
EXAMPLES = REFERENCE / "examples"
PATIENT = ServeOptions(read_seconds=120.0, upload_seconds=120.0)  # of a machine that does other things, too

pytestmark = [pytest.mark.slow, pytest.mark.skipif(browser_files() is None, reason=MISSING)]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(create_app(REFERENCE, PATIENT), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def shared_browser() -> Iterator[Any]:
    with open_browser() as opened:
        opened.set_page_load_timeout(120)
        opened.set_script_timeout(120)
        yield opened


@pytest.fixture
def browser(shared_browser: Any) -> Iterator[Any]:
    """With nothing severe on its console, not even what the policy refuses, when a test has ended."""
    show_as(shared_browser, width=1440, height=900)
    yield shared_browser
    assert [line for line in shared_browser.get_log("browser") if line["level"] == "SEVERE"] == []


def eventually(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (outcome := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return outcome


def texts(browser: Any, selector: str) -> list[str]:
    """Of all elements at once: the page may be another one by the next question."""
    script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText.trim())"
    return list(browser.execute_script(script, selector))


def drop(browser: Any, *files: Path) -> None:
    """As a hand drops files: dragged over the form, then let go."""
    contents = [(file.name, base64.b64encode(file.read_bytes()).decode()) for file in files]
    browser.execute_script(
        "const moved = new DataTransfer();"
        "for (const [name, content] of arguments[0])"
        "  moved.items.add(new File([Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))], name));"
        "const fire = (name) => document.getElementById('drop').dispatchEvent("
        "  new DragEvent(name, {dataTransfer: moved, bubbles: true, cancelable: true}));"
        "fire('dragover');"
        "window.wasOver = document.getElementById('drop').classList.contains('over');"
        "setTimeout(() => fire('drop'), 0);",
        contents,
    )


def test_a_dropped_file_gets_its_card_with_the_map_beside_it(browser: Any, address: str):
    browser.get(f"{address}/")
    drop(browser, EXAMPLES / "very-good.pt")
    assert eventually(lambda: texts(browser, ".card .word")) == ["Good"]
    answer = Index.open(REFERENCE).query(EXAMPLES / "very-good.pt")
    assert texts(browser, ".card .verdict") == [answer.verdict]
    card, drawn = (browser.find_element("css selector", one).rect for one in (".card", "figure svg[role=group]"))
    assert drawn["x"] >= card["x"] + card["width"]  # beside it
    assert drawn["height"] > 150
    star = browser.find_element("css selector", ".star")
    near = browser.find_elements("css selector", "svg a")
    assert len(near) == len(answer.neighbours)
    middle = np.array([star.rect["x"] + star.rect["width"] / 2, star.rect["y"] + star.rect["height"] / 2])
    far = [np.hypot(*(np.array([one.rect["x"], one.rect["y"]]) - middle)) for one in near]
    assert min(far) < 40  # pixels: it stands among them
    near[-1].click()  # over the others, and not under the star
    assert eventually(lambda: browser.current_url == f"{address}/checkpoints/{answer.neighbours[-1].id}")


def test_several_dropped_files_are_a_table_that_sorts_and_opens(browser: Any, address: str):
    browser.get(f"{address}/")
    drop(browser, *(EXAMPLES / f"{name}.pt" for name in ("bad", "very-good", "middling")))
    assert eventually(lambda: texts(browser, "#runs tbody tr"))
    column = "#runs tbody td:nth-child(3)"
    accuracies = [float(cell) for cell in texts(browser, column)]
    assert accuracies == sorted(accuracies, reverse=True)  # the best first
    head = browser.find_element("css selector", "#runs th:nth-child(3) button")
    head.click()
    assert [float(cell) for cell in texts(browser, column)] == sorted(accuracies)
    assert browser.find_element("css selector", "#runs th:nth-child(3)").get_attribute("aria-sort") == "ascending"
    head.click()
    assert [float(cell) for cell in texts(browser, column)] == accuracies
    browser.find_element("css selector", "#runs tbody tr:first-child summary").click()
    assert texts(browser, "#runs details[open] p")[-2].startswith("Probably good")


def test_everything_is_done_by_keyboard_alone_on_a_phone(browser: Any, address: str):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def press(*keys: str) -> None:
        ActionChains(browser).send_keys(*keys).perform()

    def focused(script: str) -> Any:
        return browser.execute_script(f"const one = document.activeElement; return {script}")

    def tab_to(condition: str) -> None:
        for _ in range(60):
            press(Keys.TAB)
            if focused(condition):
                assert focused("getComputedStyle(one).outlineStyle") != "none" or focused("one.closest('svg') !== null")
                return
        raise AssertionError(f"the Tab key does not reach {condition}")

    show_as(browser, width=390)
    browser.get(f"{address}/")
    tab_to("one.type === 'file'")
    browser.switch_to.active_element.send_keys(str(EXAMPLES / "very-good.pt"))  # what the system's dialog would do
    tab_to("one.innerText === 'Ask'")
    press(Keys.ENTER)
    assert eventually(lambda: texts(browser, ".card .word")) == ["Good"]
    tab_to("one.closest('svg a') !== null")
    tab_to("one.innerText === 'test accuracy'")
    press(Keys.SPACE)
    values = [float(cell) for cell in texts(browser, "main table td:nth-child(2)")[:10]]
    assert values == sorted(values)
    tab_to("one.pathname?.startsWith('/runs/')")
    run = focused("one.innerText")
    press(Keys.ENTER)
    assert eventually(lambda: texts(browser, "h1")) == [f"run {run}"]
    tab_to("one.id === 'q'")
    press("epoch = 86", Keys.ENTER)
    assert eventually(lambda: texts(browser, "h1") == ["condition epoch = 86"])


def pages(address: str) -> Iterator[tuple[str, Callable[[Any], None]]]:
    id = Index.open(REFERENCE).query(EXAMPLES / "good.pt", k=1).neighbours[0].id
    for place in (
        "/",
        "/examples/bad",
        f"/checkpoints/{id}",
        "/runs/usps-v1/35",
        "/search?q=epoch %3D 86",
        "/search?q=x %3E 1",
    ):
        yield place, lambda browser, place=place: browser.get(f"{address}{place}")

    def table(browser: Any) -> None:
        browser.get(f"{address}/")
        drop(browser, EXAMPLES / "bad.pt", EXAMPLES / "good.pt", Path(__file__))  # the last one fails
        assert eventually(lambda: texts(browser, "#runs tbody tr"))

    yield "table", table


def test_pages_fit_a_phone_are_dark_where_wanted_and_axe_finds_no_serious_fault(browser: Any, address: str):
    checked = axe_file() is not None
    for name, open_page in pages(address):
        open_page(browser)
        grounds = []
        for width, dark in ((1440, False), (390, False), (390, True)):
            show_as(browser, width=width, dark=dark)
            assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), (name, width)
            style = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            grounds.append(sum(int(part) for part in style[4:-1].split(",")))
            if checked and width == 390:
                rules = ("color-contrast",) if dark else ()  # all that another colour changes
                assert accessibility_faults(browser, *rules) == [], (name, dark)
        assert grounds[0] == grounds[1] > 600, name
        assert grounds[2] < 150, name
    browser.get_log("browser")  # 404 and 422 are severe to it
    if not checked:
        pytest.skip(NO_AXE)
