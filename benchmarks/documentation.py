"""Writes the documentation's generated blocks, between `<!-- name -->` and `<!-- /name -->`, from committed results.

python benchmarks/documentation.py           # rewrite README.md and docs/*.md
python benchmarks/documentation.py --check   # end with 1 where one is out of date

A block of your own: a function that gives Markdown, its name in BLOCKS, and the two comments in a page. Links in a
block are written as from the project's root.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # tests load this file by its path

import relations_tables
import speed_tables
import truth_tables

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def query() -> str:
    """The answer of the committed index for its best example, as a terminal of 80 columns shows it in the root."""
    from weightsearch import query as run

    return f"```\n{run('index', 'index/examples/very-good.pt', k=10)}\n```"


def reference() -> str:
    result = json.loads((RESULTS / "reference_index.json").read_text())
    found = result["recomputed"]
    return (
        "| checkpoints of held-out runs | R² | Kendall's tau | mean absolute error |\n|---|---|---|---|\n"
        f"| {result['checkpoints']:,} | {found['r2']:.3f} | {found['tau']:.3f} | {found['mae']:.3f} |"
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "reading-many": speed_tables.reading_many,
    "attack": speed_tables.attack,
    "checks": speed_tables.checks,
    "shift": truth_tables.shift,
    **relations_tables.BLOCKS,
    "query": query,
    "how-true": truth_tables.how_true,
    "novelty": truth_tables.novelty,
    "reference": reference,
    "throughput": speed_tables.throughput,
    "tables": truth_tables.tables,
    "accuracy": truth_tables.accuracy,
    "zoos": truth_tables.zoos,
    "evaluation": truth_tables.evaluation,
    "bars": truth_tables.bars,
    "peers": truth_tables.peers,
    "search": speed_tables.search,
    "scale": speed_tables.scale,
    "sketches": speed_tables.sketches,
    "shards": speed_tables.shards,
    "fits": speed_tables.fits,
    "map": speed_tables.map_frames,
    "serve": speed_tables.serve,
    "umap": speed_tables.umap,
    "any-architecture": truth_tables.any_architecture,
    "universal-limits": truth_tables.universal_limits,
    "few-labels": truth_tables.few_labels,
    "universal-cost": speed_tables.universal_cost,
}


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"<!-- {name} -->\n(.*?)\n?<!-- /{name} -->", re.DOTALL)


def block(name: str, page: Path) -> str:
    """A block as it stands in a page: with links from the page's folder."""
    root = os.path.relpath(ROOT, page.parent)
    text = BLOCKS[name]()
    return text if root == "." else text.replace("](benchmarks/", f"]({root}/benchmarks/")


def generate(page: Path) -> str:
    """A page's text with each of its blocks as the results have it."""
    text = page.read_text()
    for name in BLOCKS:
        if pattern(name).search(text):
            new = f"<!-- {name} -->\n{block(name, page)}\n<!-- /{name} -->"
            text = pattern(name).sub(lambda _, new=new: new, text)  # type: ignore[misc]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    texts = {page: page.read_text() for page in pages()}
    if lost := [name for name in BLOCKS if not any(pattern(name).search(text) for text in texts.values())]:
        sys.exit(f"no page has a block called {', '.join(lost)}: put <!-- NAME --> and <!-- /NAME --> into one")
    stale = [page for page, text in texts.items() if generate(page) != text]
    if arguments.check:
        names = ", ".join(str(page.relative_to(ROOT)) for page in stale)
        sys.exit(f"{names}: out of date; run python benchmarks/documentation.py" if stale else 0)
    for page in stale:
        page.write_text(generate(page))
        print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
