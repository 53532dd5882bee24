"""What the command line prints, as rich renderables. No numbers are made here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from weightsearch.search import wording
from weightsearch.text_table import Table, counted

ARCHITECTURE_LINES, ARCHITECTURE_WIDTH = 5, 70
QUARANTINED_LINES = 20

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from weightsearch.checkpoints.discovery import Quarantined
    from weightsearch.index import Finding, IndexInfo
    from weightsearch.metrics import Prediction
    from weightsearch.search.add import AddReport
    from weightsearch.search.answer import Answer
    from weightsearch.search.shards import EmbedReport
    from weightsearch.training.summary import TrainSummary, UniversalSummary
    from weightsearch.uncertainty.calibration import Calibration
    from weightsearch.zoo.build_zoo import BuildSummary
    from weightsearch.zoo.import_zoo import ImportSummary


def answer(
    given: Answer, explain: bool = False, *, layers: bool = False, lists: bool = False, width: int = wording.WIDTH
) -> RenderableType:
    """The few lines of the default answer, and what was asked for beside."""
    sentence, rest = [], wording.lines(given, width)
    while rest and not rest[0].startswith("  "):
        sentence.append(rest.pop(0))
    style = {"good": "bold green", "bad": "bold red", "unlike": "bold magenta"}.get(given.label, "bold yellow")
    parts: list[RenderableType] = [Text("\n".join(sentence), style=style), Text("\n".join(rest))]
    if explain:
        parts += [Text(), Text(f"plan: {given.plan.describe()}")]
    tables = [*(wording.tables(given) if lists else []), *([wording.layers_table(given)] if layers else [])]
    for table in tables:
        parts += [Text(), table.to_rich()]
    return Group(*parts)


def index_info(info: IndexInfo) -> RenderableType:
    about = Grid.grid(padding=(0, 2))
    about.add_row("index", f"{info.path} ({info.size / 2**20:.1f} MiB, format {info.format})")
    about.add_row("generation", f"{info.generation:,}")
    about.add_row("distance", info.metric)
    about.add_row("judges by", info.target)
    about.add_row("filters", "the rows' columns" + "".join(f", {name}" for name in info.keys))
    parts: list[RenderableType] = [about]
    for entry in info.architectures:
        part = Grid.grid(padding=(0, 2))
        part.add_row("architecture", f"{entry.fingerprint}: {entry.description}")
        part.add_row("encoder", f"{entry.method}, {entry.width} values")
        datasets = ", ".join(f"{name} {rows:,}" for name, rows in entry.datasets.items())
        part.add_row("rows", f"{entry.rows:,} of {entry.runs:,} runs ({datasets}); {entry.unknown:,} not judged")
        part.add_row("good, bad", f"{entry.good:.3f} or better, {entry.bad:.3f} or worse")
        approximate = f", nprobe {entry.nprobe}, recall {entry.recall:.3f}" if entry.recall is not None else ""
        behind = f"; {entry.behind:,} rows behind, which readers add" if entry.behind else ""
        part.add_row("FAISS", f"{entry.faiss}{approximate}{behind}")
        exact = "exact: results are those of brute force over the rows that pass"
        part.add_row("searches", exact if entry.exact else "approximate, but exact where few rows pass a filter")
        parts += [Text(), part]
    return Group(*parts)


def findings(findings: Sequence[Finding]) -> RenderableType:
    table = Grid.grid(padding=(0, 2))
    for finding in findings:
        style = {"ok": "green", "repaired": "yellow", "broken": "red"}[finding.state]
        table.add_row(Text(finding.state, style=style), finding.what, finding.detail)
    return table


def build_summary(summary: BuildSummary) -> RenderableType:
    trained = (
        f"{counted(summary.trained, 'run')} trained in {summary.seconds:.0f} s" if summary.trained else "nothing to do"
    )
    if summary.seconds > 0 and summary.network_epochs:
        trained += f" ({summary.network_epochs / summary.seconds:,.0f} networks × epochs/s)"
    failed = f", {summary.failed} of them failed" if summary.failed else ""
    checkpoints = counted(summary.checkpoints, "checkpoint")
    return Text(f"{summary.path}: {counted(summary.runs, 'run')}{failed}, {checkpoints}; {trained}")


def import_summary(summary: ImportSummary) -> RenderableType:
    news = "nothing new" if not summary.added else f"{counted(summary.added, 'run')} imported as {summary.layout}"
    if not summary.added and (summary.later or summary.changed):
        counts = {"checkpoints added to its runs": summary.later, "cells changed": summary.changed}
        news = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    one = summary.architecture
    kinds = one.describe() if one else f"{summary.architectures} architectures"
    held = f"{counted(summary.runs, 'run')}, {counted(summary.checkpoints, 'checkpoint')}"
    return Text(f"{summary.path}: {held} of {kinds}; {news}")


def add_report(report: AddReport) -> RenderableType:
    alone = sum(report.unknown.values())
    parts = [f"{counted(report.added, 'checkpoint')} added"] if report.added or not alone else []
    parts += [f"{report.already:,} were there already"] if report.already else []
    parts += [counted(report.signed, "signature")] if report.signed else []
    parts += [f"{alone:,} known by relations alone"] if alone else []
    parts += [f"{len(report.quarantined):,} left out"] if report.quarantined else []
    return Text(f"{report.index}: {', '.join(parts)}")


def embed_report(report: EmbedReport) -> RenderableType:
    already = f", {report.already:,} were in parts already" if report.already else ""
    left = len(report.quarantined) + sum(report.unknown.values())
    return Text(
        f"{report.out}: {counted(report.read, 'file')} of this shard read into {counted(len(report.parts), 'part')}"
        + already
        + (f", {left:,} without a row" if left else "")
    )


def left_out(
    quarantined: Sequence[Quarantined], others: Mapping[str, int], notes: Sequence[str], *, signed: bool = True
) -> Iterator[str]:
    """Lines for stderr: what was assumed, and which files were left out and why.

    `others` are architectures that have no encoder, whose files are `signed` for relations, or are left out.
    """
    yield from (f"note: {note}" for note in notes)
    for name, count in list(others.items())[:ARCHITECTURE_LINES]:
        files, short = counted(count, "file"), _short(name)
        yield (
            f"known by relations alone: {files} of {short}: no encoder for it here"
            if signed
            else f"left out: {files} of another architecture, {short}"
        )
    if (more := len(others) - ARCHITECTURE_LINES) > 0:
        yield f"and {more:,} more architectures"
    for bad in quarantined[:QUARANTINED_LINES]:
        yield f"left out: {bad.path}: {bad.reason}"
    if len(quarantined) > QUARANTINED_LINES:
        yield f"left out: {len(quarantined) - QUARANTINED_LINES:,} more"


def _short(architecture: str) -> str:
    """An architecture's description, without its middle where it is long."""
    if len(architecture) <= ARCHITECTURE_WIDTH or " (" not in architecture:
        return architecture
    layers, size = architecture.rsplit(" (", 1)
    return f"{layers[: ARCHITECTURE_WIDTH - len(size) - 4].rsplit(' - ', 1)[0]} - … ({size}"


def train_summary(summary: TrainSummary) -> RenderableType:
    table = Table(
        "Encoders on validation runs",
        ("method", "R²", "tau", "mean abs. error", "seconds", ""),
        tuple(
            (method, *_scores(scores), f"{summary.seconds[method]:.1f}", "kept" if method is summary.method else "")
            for method, scores in summary.validation.items()
        ),
        right=(1, 2, 3, 4),
    )
    runs = " / ".join(f"{count} {part}" for part, count in summary.runs.items())
    lines = [
        f"split {summary.split}: {runs} runs",
        f"{summary.method} on the test runs, scored once: "
        f"R² {summary.test.r2:.3f}, tau {summary.test.tau:.3f}, mean absolute error {summary.test.mae:.3f}",
        _interval(summary.calibration),
        f"{summary.checkpoints:,} checkpoints indexed in {summary.index}",
    ]
    lines += [f"held out: {example.path} (test accuracy {example.test_accuracy:.3f})" for example in summary.examples]
    return Group(table.to_rich(), Text(), *(Text(line) for line in lines))


def universal_summary(summary: UniversalSummary) -> RenderableType:
    adapted = summary.adapted
    parts: list[RenderableType] = []
    if adapted.scores:
        weights = {name: f"{weight:.2f}" for name, weight in adapted.weights.items()}
        table = Table(
            "Predictions of labelled runs, each left out in turn",
            ("from", "R²", "tau", "mean abs. error", "weight"),
            tuple((name, *_scores(scores), weights.get(name, "")) for name, scores in adapted.scores.items()),
            right=(1, 2, 3, 4),
        )
        parts += [table.to_rich(), Text()]
    labelled = f", {adapted.labelled_runs:,} labelled" if summary.test is None else ""  # or all were fitted on
    lines = [f"{summary.runs:,} runs of {summary.architectures:,} architectures{labelled}"]
    if summary.test is not None:
        lines.append(
            f"fitted on this zoo; on its test runs R² {summary.test.r2:.3f}, tau {summary.test.tau:.3f}, "
            f"mean absolute error {summary.test.mae:.3f}"
        )
    elif not adapted.is_calibrated:
        lines.append("too few labelled runs to calibrate to (3): predictions are the shipped encoder's, as they are")
    if adapted.interval is not None:
        width = f"{adapted.interval.coverage:.0%} intervals from leaving out each run in turn"
        lines.append(f"{width}, {adapted.interval.runs} runs")
    elif summary.test is None:
        lines.append("no intervals: fewer than 9 labelled runs")
    if summary.flagged > 0:
        few = "" if adapted.is_calibrated or summary.flagged <= 0.25 else ": trust the order of predictions, not values"
        lines.append(f"{summary.flagged:.0%} of the checkpoints are of kinds that the encoder does not know{few}")
    if summary.damaged:
        lines.append(f"look damaged (shuffled, noised or partly random weights): {summary.damaged:,} checkpoints")
    lines.append(f"{summary.checkpoints:,} checkpoints indexed in {summary.index}")
    lines += [f"held out: {example.path} (test accuracy {example.test_accuracy:.3f})" for example in summary.examples]
    return Group(*parts, *(Text(line) for line in lines))


def _interval(calibration: Calibration | None) -> str:
    if calibration is None or calibration.interval is None:
        return "no intervals: too few test runs to set some aside for calibration"
    return (
        f"{calibration.interval.coverage:.0%} intervals, calibrated on {calibration.interval.runs} further runs, "
        f"hold the truth of {calibration.found_coverage:.0%} of the test part"
    )


def _scores(scores: Prediction) -> tuple[str, str, str]:
    return f"{scores.r2:.3f}", f"{scores.tau:.3f}", f"{scores.mae:.3f}"
