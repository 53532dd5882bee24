"""A headless Chromium for tests and measurements of the HTML files."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

MISSING = "no Chromium with its driver: on Debian, apt-get install chromium chromium-driver"
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--window-size=1280,800",
    "--use-angle=swiftshader",  # WebGL on the processor
    "--enable-unsafe-swiftshader",
)


def browser_files() -> tuple[str, str] | None:
    """The browser and its driver, or None where one of them is missing."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


NO_AXE = "no axe-core: pip install axe-playwright-python, which brings its axe.min.js"


def axe_file() -> Path | None:
    """The script of axe-core (https://github.com/dequelabs/axe-core), or None where no package brings it."""
    package = importlib.util.find_spec("axe_playwright_python")
    folders = (package and package.submodule_search_locations) or []
    return next((file for folder in folders if (file := Path(folder, "axe.min.js")).is_file()), None)


def accessibility_faults(browser: Chrome, *rules: str) -> list[tuple[str, str, Any]]:
    """What axe-core, by some or all of its rules, finds serious or critical on the page, or in the frame, that is open.

    Rule, element and reason of each.
    """
    file = axe_file()
    assert file is not None, NO_AXE
    browser.execute_script(file.read_text(encoding="utf-8"))
    outcome = browser.execute_async_script(
        "const [options, done] = arguments;"
        "axe.run(document, options).then(done, (error) => done({error: String(error)}))",
        {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})},
    )
    assert "error" not in outcome, outcome
    assert len(outcome["passes"]) > (0 if rules else 5), "axe-core looked at next to nothing"
    return [
        (violation["id"], node["target"], node["failureSummary"])
        for violation in outcome["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


def show_as(browser: Chrome, *, width: int, height: int = 844, dark: bool = False) -> None:
    """As a screen of this size shows pages, below 500 pixels a phone, whose owner prefers light or dark ones."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


@contextmanager
def open_browser() -> Iterator[Chrome]:
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    found = browser_files()
    if found is None:
        raise FileNotFoundError(MISSING)
    options = ChromeOptions()
    options.binary_location = found[0]
    for option in OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=Service(found[1]))
    try:
        yield browser
    finally:
        browser.quit()
