"""A report: one HTML page with every figure, the map, the tables, the metrics, and the commands that make them."""

from __future__ import annotations

import base64
import io
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.errors import WeightsearchError
from weightsearch.evaluation import block_means
from weightsearch.html_template import render_html
from weightsearch.metrics import score
from weightsearch.text_table import Table
from weightsearch.types import Metric, Target
from weightsearch.viz.figures import SIMILARITY_SAMPLE, Options, sample_of
from weightsearch.viz.map import read_static
from weightsearch.viz.sources import IndexSource, Part, Source, ZooSource
from weightsearch.viz.style import DPI, label_of

NEAR = 0.1  # of cosine similarity: pairs that are so much more (less) alike than any two networks are near (far)
CAPTIONS = {
    "distribution": "How many networks have which accuracy, and how far test accuracy falls behind training accuracy.",
    "efficiency": "What each trained parameter of an encoder buys, in the best trials of a random search.",
    "embedding": "Each dot is a network. Where dots of one colour lie together, the weights tell networks of different "
    "accuracy apart; where each run is an island of its own, the encoder only remembers runs.",
    "similarity": "Good networks come first. A red square at the upper left says that good networks are alike, one "
    "at the lower right that bad ones are, and white or blue corners that good and bad ones are not.",
    "training": "How one run moves through the picture while it trains.",
}


@dataclass(frozen=True)
class Section:
    """A part of the page under its title: some of a text, a table, a picture in base64, a page, Markdown, commands."""

    title: str
    text: str = ""
    table: Table | None = None
    png: str = ""
    map_page: str = ""
    html: str = ""
    commands: str = ""

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower())


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
    sections = [Section("What it is about", " ".join(map(_in_a_sentence, sources)), table=_about(sources))]
    sections += [
        Section(name.capitalize(), CAPTIONS[name], png=base64.b64encode(content).decode())
        for name, content in figures.items()
    ]
    note("metrics")
    sections += [
        Section("Three wishes", table=_wishes(sources, options)),
        Section("Prediction", table=_prediction(sources)),
        Section("Map", "Pan, zoom, point at a network for its recipe, click it for its neighbours.", map_page=map_html),
    ]
    sections += [Section(document.stem.capitalize(), html=_markdown(document)) for document in documents]
    sections.append(Section("Commands", commands="\n".join(commands)))
    return render_html(
        "report.html",
        title="Networks of " + ", ".join(dict.fromkeys(f"{one.dataset} {one.preset}".strip() for one in sources)),
        dark=dark,
        style=read_static("report.css"),
        version=version("weightsearch"),
        date=datetime.now(UTC).strftime("%d %B %Y").lstrip("0"),
        generations=_generations(sources),
        sections=sections,
    )


def png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": "weightsearch"})
    return buffer.getvalue()


def commands_of(sources: Sequence[Source], paths: Sequence[Path]) -> list[str]:
    """The commands that make what the report is about, as far as the files tell."""
    lines = []
    for number, source in enumerate(sources):
        if isinstance(source, ZooSource):
            info = source.zoo.info
            runs = len(source.zoo.table().recipes)
            lines.append(
                f"weightsearch build-zoo --dataset {shlex.quote(info.dataset)} --preset {info.preset} --runs {runs} "
                f"--seed {info.seed} --out {shlex.quote(str(source.path))}"
            )
        elif isinstance(source, IndexSource):
            lines += _makes(source, added=any(source.path == other.path for other in sources[:number]))
    named = shlex.join(map(str, paths))
    return [
        *lines,
        f"weightsearch viz {named}",
        f"weightsearch viz {named} --interactive",
        f"weightsearch report {named}",
    ]


def _makes(source: IndexSource, added: bool) -> list[str]:
    """The commands that make one space of an index from nothing, with all that its notes say."""
    notes = source.notes
    zoo, split = notes.get("zoo", {}), notes.get("split", {})
    parts = (split.get(part) or () for part in ("train", "validation", "test", "calibration"))
    runs = notes.get("zoo_runs") or sum(map(len, parts))
    path = shlex.quote(f"runs/zoos/{zoo.get('name', 'ZOO')}")
    lines = []
    if zoo.get("preset") and runs:
        dataset = "" if zoo["preset"] == "wild" else f"--dataset {shlex.quote(str(zoo['dataset']))} "
        lines.append(
            f"weightsearch build-zoo {dataset}--preset {zoo['preset']} --runs {runs} --seed {zoo.get('seed', 0)} "
            f"--out {path}"
        )
    options = [f"--method {source.methods[0]}", f"--seed {notes.get('seed', 0)}"]
    if notes.get("from_scratch"):
        options.append("--from-scratch")
    if split.get("by", "run") != "run":
        options.append(f"--split {split['by']}")
    if split.get("per_run"):
        options.append(f"--per-run {split['per_run']}")
    if source.target != Target():
        options.append(f"--target {source.target.column}" + " --lower-is-better" * source.target.lower_is_better)
    if source.metric is not Metric.COSINE:
        options.append(f"--metric {source.metric}")
    examples = len(list((source.path / "examples").glob("*.pt")))
    if examples and not added:
        options.append(f"--examples {examples}")
    if added:
        options.append("--add")
    lines.append(f"weightsearch train {path} {' '.join(options)} --out {shlex.quote(str(source.path))}")
    return lines


def _in_a_sentence(source: Source) -> str:
    """What it holds, and what its predictions are worth."""
    values = source.values[np.isfinite(source.values)]
    kind = "an index" if isinstance(source, IndexSource) else "a zoo"
    said = (
        f"{source.path.name} is {kind} of {len(source.values):,} networks of {len(np.unique(source.runs)):,} runs on "
        f"{source.dataset} ({source.architecture.brief()}), with a median {label_of(source.target)} of "
        f"{np.median(values):.3f}."
    )
    test = source.notes.get("metrics", {}).get("test") if isinstance(source, IndexSource) else None
    if test:
        said += (
            f" On {test['count']:,} networks of test runs its encoder predicts that with an R² of {test['r2']:.3f} "
            f"and a mean absolute error of {test['mae']:.3f}."
        )
    return said


def _generations(sources: Sequence[Source]) -> str:
    """Which state of each index is shown."""
    shown = {source.path.name: source.generation for source in sources if isinstance(source, IndexSource)}
    return ", ".join(f"generation {generation:,} of {name}" for name, generation in shown.items())


def _about(sources: Sequence[Source]) -> Table:
    rows = []
    for source in sources:
        values = source.values[np.isfinite(source.values)]
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        kind = "index" if isinstance(source, IndexSource) else "zoo"
        weights = "any" if source.architecture.is_any else f"{source.architecture.size:,}"
        rows.append(
            (
                f"{source.path.name} ({kind})", source.dataset, source.preset, f"{len(np.unique(source.runs)):,}",
                f"{len(source.values):,}", weights, source.target.column.replace("_", " "),
                f"{low:.3f} / {middle:.3f} / {high:.3f}",
            )
        )  # fmt: skip
    header = ("", "dataset", "preset", "runs", "networks", "weights each", "judged by", "its quartiles")
    return _table(header, rows)


def _wishes(sources: Sequence[Source], options: Options) -> Table:
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
    return _table(header, rows, text)


def _prediction(sources: Sequence[Source]) -> Table:
    rows = []
    for source in sources:
        try:
            test = source.sample(Part.TEST, len(source.values), 0).positions
        except WeightsearchError:  # an index without held-out runs
            continue
        for method in source.methods:
            predicted = source.predictions(method, test)
            if predicted is not None and np.isfinite(predicted).all():
                scored = score(predicted, source.values[test])
                texts = (f"{scored.r2:.3f}", f"{scored.tau:.3f}", f"{scored.mae:.3f}")
                rows.append((source.title, method, f"{scored.count:,}", *texts))
    text = (
        "Predicted from the weights against true, on networks of runs that no encoder was fitted to. An index's card "
        "scores all test runs; here are those that the index holds, without its examples."
    )
    header = ("", "method", "networks", "R²", "Kendall's tau", "mean absolute error")
    return _table(header, rows, text if rows else "No held-out runs to judge by.")


def _table(header: Sequence[str], rows: Sequence[tuple[str, ...]], meaning: str = "") -> Table:
    return Table("", tuple(header), tuple(rows), right=tuple(range(1, len(header))), meaning=meaning)


def _markdown(path: Path) -> str:
    """HTML of what `tables` and `evaluate` write, below the page's headings; its pictures are left out."""
    from markdown_it import MarkdownIt

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise WeightsearchError(f"{path} cannot be read ({error.strerror})") from None
    parser = MarkdownIt("js-default")  # no HTML of the document's own passes
    parser.add_render_rule("image", lambda *_: "")
    parser.add_render_rule("table_open", lambda *_: '<div class="scroll" tabindex="0"><table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    tokens = parser.parse(text)
    for token in tokens:
        if token.type.startswith("heading"):
            token.tag = f"h{min(6, int(token.tag[1:]) + 2)}"
    return parser.renderer.render(tokens, parser.options, {})
