"""A report: one HTML page with every figure, the map, the tables, the metrics, and the commands that make them."""

from __future__ import annotations

import base64
import io
import re
import shlex
from collections.abc import Callable, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.errors import WeightsearchError
from weightsearch.evaluation import block_means
from weightsearch.metrics import score
from weightsearch.viz.figures import SIMILARITY_SAMPLE, Options, sample_of
from weightsearch.viz.map import fill_template
from weightsearch.viz.sources import IndexSource, Part, Source, ZooSource
from weightsearch.viz.style import DPI

NEAR = 0.1  # of cosine similarity: pairs that are so much more (less) alike than any two networks are near (far)
CAPTIONS = {
    "distribution": "How many networks have which accuracy, and how far test accuracy falls behind training accuracy.",
    "efficiency": "What each trained parameter of an encoder buys, in the best trials of a random search.",
    "embedding": "Each dot is a network. Where dots of one colour lie together, the weights tell networks of different "
    "accuracy apart; where each run is an island of its own, the encoder only remembers runs.",
    "similarity": "Good networks come first. A light square at the upper left says that good networks are alike, one "
    "at the lower right that bad ones are, and dark corners that good and bad ones are not.",
    "training": "How one run moves through the picture while it trains.",
}


def compose(
    sources: Sequence[Source],
    figures: dict[str, bytes],
    map_html: str,
    options: Options,
    *,
    documents: Sequence[Path] = (),
    commands: Sequence[str] = (),
    dark: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> str:
    """The page. `figures` are PNGs by name, `documents` Markdown files of `tables` and `evaluate` to take in."""
    parts = [("What it is about", _about(sources))]
    parts += [(name.capitalize(), _figure(name, content)) for name, content in figures.items()]
    note("metrics")
    parts += [
        ("Three wishes", _wishes(sources, options)),
        ("Prediction", _prediction(sources)),
        (
            "Map",
            "<p>Pan, zoom, point at a network for its recipe, click it for its neighbours.</p>"
            f'<iframe title="map" srcdoc="{escape(map_html)}"></iframe>',
        ),
    ]
    parts += [(document.stem.capitalize(), _markdown(document)) for document in documents]
    parts.append(("Commands", f"<pre>{escape(chr(10).join(commands))}</pre>"))
    links = "".join(f'<a href="#{_anchor(title)}">{escape(title)}</a>' for title, _ in parts)
    sections = "\n".join(f'<h2 id="{_anchor(title)}">{escape(title)}</h2>\n{body}' for title, body in parts)
    title = "Networks of " + ", ".join(dict.fromkeys(source.title for source in sources))
    head = f"<p>Made by weightsearch {version('weightsearch')}.</p><nav>{links}</nav>"
    return fill_template("report", title, dark, body=f"{head}\n{sections}")


def png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": "weightsearch"})
    return buffer.getvalue()


def commands_of(sources: Sequence[Source], paths: Sequence[Path]) -> list[str]:
    """The commands that make what the report is about, as far as the files tell."""
    lines = []
    for source in sources:
        if isinstance(source, ZooSource):
            info = source.zoo.info
            runs = len(source.zoo.table().recipes)
            lines.append(
                f"weightsearch build-zoo --dataset {shlex.quote(info.dataset)} --preset {info.preset} --runs {runs} "
                f"--seed {info.seed} --out {shlex.quote(str(source.path))}"
            )
        elif isinstance(source, IndexSource):
            zoo, seed = source.notes.get("zoo", {}).get("name", "ZOO"), source.notes.get("seed", 0)
            lines.append(
                f"weightsearch train runs/zoos/{zoo} --method {source.methods[0]} --seed {seed} "
                f"--out {shlex.quote(str(source.path))}"
            )
    named = shlex.join(map(str, paths))
    return [
        *lines,
        f"weightsearch viz {named}",
        f"weightsearch viz {named} --interactive",
        f"weightsearch report {named}",
    ]


def _about(sources: Sequence[Source]) -> str:
    rows = []
    for source in sources:
        values = source.values[np.isfinite(source.values)]
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        kind = "index" if isinstance(source, IndexSource) else "zoo"
        rows.append(
            (
                f"{source.path.name} ({kind})", source.dataset, source.preset, f"{len(np.unique(source.runs)):,}",
                f"{len(source.values):,}", f"{source.architecture.size:,}", source.target.column.replace("_", " "),
                f"{low:.3f} / {middle:.3f} / {high:.3f}",
            )
        )  # fmt: skip
    header = ("", "dataset", "preset", "runs", "networks", "weights each", "judged by", "its quartiles")
    return _table(header, rows)


def _figure(name: str, content: bytes) -> str:
    data = base64.b64encode(content).decode()
    return f'<p>{CAPTIONS[name]}</p>\n<img alt="{name}" src="data:image/png;base64,{data}">'


def _wishes(sources: Sequence[Source], options: Options) -> str:
    """Mean cosine similarities, and whether good are near good, bad near bad, and good far from bad."""
    rows = []
    for source in sources:
        sample = sample_of(source, options, SIMILARITY_SAMPLE)
        quality = source.target.quality(source.values[sample.positions])
        bad, good = (source.target.quality(threshold) for threshold in source.thresholds)
        for method in source.methods:
            vectors = source.vectors(method, sample.positions)
            means = block_means(vectors, quality, good, bad)
            everything = block_means(vectors, quality, -np.inf, -np.inf).good_good
            met = (
                means.good_good > everything + NEAR, means.bad_bad > everything + NEAR,
                means.good_bad < everything - NEAR,
            )  # fmt: skip
            numbers = (means.good_good, means.bad_bad, means.good_bad, everything)
            rows.append(
                (
                    f"{source.title}, {sample.label}",
                    method,
                    *(f"{n:+.2f}" for n in numbers),
                    *("yes" if one else "no" for one in met),
                )
            )
    header = (
        "", "method", "good–good", "bad–bad", "good–bad", "any two",
        "good near good", "bad near bad", "good far from bad",
    )  # fmt: skip
    text = (
        "An embedding should put good networks near good ones, bad near bad, and good far from bad (Liu 2022, section "
        f"6). The mean cosine similarity of such pairs; near and far: {NEAR} more and less alike than any two networks."
    )
    return f"<p>{text}</p>{_table(header, rows)}"


def _prediction(sources: Sequence[Source]) -> str:
    rows = []
    for source in sources:
        try:
            test = source.sample(Part.TEST, len(source.values), 0).positions
        except WeightsearchError:  # an index without held-out runs
            continue
        for method in source.methods:
            predicted = source.predictions(method, test)
            if predicted is not None and np.isfinite(predicted).all():
                found = score(predicted, source.values[test])
                texts = (f"{found.r2:.3f}", f"{found.tau:.3f}", f"{found.mae:.3f}")
                rows.append((source.title, method, f"{found.count:,}", *texts))
    text = "Predicted from the weights against true, on networks of runs that no encoder was fitted to."
    header = ("", "method", "networks", "R²", "Kendall's tau", "mean absolute error")
    return f"<p>{text}</p>{_table(header, rows)}" if rows else "<p>No held-out runs to judge by.</p>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())


def _markdown(path: Path) -> str:
    """HTML of what `tables` and `evaluate` write: headings, paragraphs and tables; their pictures are left out."""
    try:
        blocks = re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsearchError(f"{path} cannot be read ({error.strerror})") from None
    made = []
    for block in map(str.strip, blocks):
        lines = block.splitlines()
        if block.startswith("#"):
            level = min(6, len(block) - len(block.lstrip("#")) + 2)
            made.append(f"<h{level}>{escape(block.lstrip('# '))}</h{level}>")
        elif block.startswith("|") and len(lines) > 1:
            cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
            made.append(_table(cells[0], cells[2:]))
        elif block and not block.startswith("!["):
            made.append(f"<p>{escape(block)}</p>")
    return "\n".join(made)
