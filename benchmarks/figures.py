"""The README's pictures, small enough to be committed: `benchmarks/results/figures/`.

Of the zoos in `runs/zoos` (`make zoos`) and of the reference index. Fits that are missing are made, in `runs/fits`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from PIL import Image

from weightsearch import paths as runs
from weightsearch.viz import Projection, draw, draw_map

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.viz.browser import browser_files, open_browser

OUT = Path(__file__).parent / "results" / "figures"
ROOT = Path(__file__).parent.parent
WIDTHS = (1650, 1400, 1200, 1000)  # pixels; a README shows fewer than 1,000
LIMIT = 300_000  # bytes


def shrink(source: Path, target: Path) -> None:
    """A copy as wide and with as many colours as `LIMIT` allows."""
    image = Image.open(source).convert("RGB")
    for width, colours in [(width, colours) for width in WIDTHS for colours in (None, 256, 128)]:
        smaller = image
        if image.width > width:
            smaller = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
        if colours is not None:  # by coverage: rare colours are what marks have
            smaller = smaller.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        smaller.save(target, optimize=True)
        if target.stat().st_size <= LIMIT:
            break
    print(target, f"{target.stat().st_size:,} bytes")


def map_picture(target: Path, folder: Path) -> None:
    """The map of the reference index in a browser, one network chosen."""
    page = draw_map(ROOT / "index", folder / "map.html", projection=Projection.UMAP)
    with open_browser() as browser:
        browser.set_window_size(1180, 720)
        browser.set_script_timeout(120)
        browser.get(page.resolve().as_uri())
        browser.execute_async_script("weightsearchMap.ready.then(() => setTimeout(arguments[0], 1000))")
        browser.execute_async_script(
            "const { target } = weightsearchMap.state.map.source;"
            "let best = 0; for (let i = 0; i < weightsearchMap.state.map.x.length; i++)"
            "  if (target.at(i) > target.at(best)) best = i;"
            "choose(best); setTimeout(arguments[0], 1500)"
        )
        browser.save_screenshot(str(folder / "map.png"))
    shrink(folder / "map.png", target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=runs.RUNS, help="Where `fits` and `searches` are.")
    parser.add_argument("--index", action="store_true", help="Those of the reference index alone, which need no zoo.")
    options = parser.parse_args()
    root = options.root
    OUT.mkdir(parents=True, exist_ok=True)
    index, zoos = ROOT / "index", ROOT / "runs" / "zoos"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        examples = [index / "examples" / "good.pt", index / "examples" / "bad.pt"]
        for path in draw(index, folder, ["embedding", "training"], networks=examples):
            shrink(path, OUT / f"index-{path.name}")
        compared = [] if options.index else ["distribution", "embedding", "similarity", "efficiency"]
        for figure in compared:
            for path in draw([zoos / "usps-v1", zoos / "mnist-v1"], folder, [figure], root=root):
                shrink(path, OUT / path.name)
        if browser_files():
            map_picture(OUT / "map.png", folder)


if __name__ == "__main__":
    main()
