"""The evaluation's tables, with what they mean to a user: for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from weightsearch.evaluation.scores import THIRDS, MetricRow
from weightsearch.text_table import Table

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST_EPOCHS = 4  # columns of the forecast by epoch


@dataclass(frozen=True)
class Section:
    """One table: metrics as columns, methods as rows."""

    title: str
    meaning: str
    columns: dict[str, str]  # metric -> heading
    against: str | None = None


SECTIONS = (
    Section(
        "Prediction",
        "The accuracy predicted from the weights against the true one. R²: 1 is perfect, 0 no better than always the "
        "mean. tau: rank correlation. error: mean absolute.",
        {"prediction.r2": "R²", "prediction.tau": "tau", "prediction.mae": "error"},
    ),
    Section(
        "Neighbours of good networks",
        "Share of the k nearest that are good, too (the best quarter of the index), for a good query.",
        {
            **{f"precision@{k}.good": f"k = {k}" for k in (1, 5, 10)},
            "precision.chance.good": "by chance",
        },
    ),
    Section(
        "Neighbours of bad networks",
        "Share of the k nearest that are bad, too (the worst quarter of the index), for a bad query.",
        {
            **{f"precision@{k}.bad": f"k = {k}" for k in (1, 5, 10)},
            "precision.chance.bad": "by chance",
        },
    ),
    Section(
        "Neighbours' accuracy",
        "The mean accuracy of the 10 nearest, one of each run, against the query's own.",
        {"neighbours.r2": "R²", "neighbours.tau": "tau", "neighbours.mae": "error"},
    ),
    Section(
        "Separation",
        "AUC: how often two networks of one class are more alike than two of different classes (0.5 is chance); "
        "and the mean cosine similarity of pairs. Good-bad should be the lowest.",
        {
            "separation.auc": "AUC",
            "separation.good_good": "good-good",
            "separation.bad_bad": "bad-bad",
            "separation.good_bad": "good-bad",
        },
    ),
    Section(
        "Twins by permutation",
        "A copy that computes the same, its hidden units in another order: does it find its original first; how far, "
        "relative to their size, do its embedding and its predicted accuracy drift from the original's (0 is ideal)?",
        {
            "twin.recall": "recall@1",
            "twin.drift": "embedding",
            "twin.drift_worst": "worst",
            "twin.predicted": "prediction",
        },
    ),
    Section(
        "Twins by permutation and scaling",
        "The same for copies whose units are also scaled (ReLU) or flipped in sign (tanh).",
        {
            "rescaled.recall": "recall@1",
            "rescaled.drift": "embedding",
            "rescaled.drift_worst": "worst",
            "rescaled.predicted": "prediction",
        },
    ),
    Section(
        "Noise",
        "Noise of 1 % of each layer's norm: how far it moves the embedding, as a share of the median distance between "
        "runs, and how many of the 10 nearest stay.",
        {"noise.shift": "moves by", "noise.kept": "neighbours kept"},
    ),
    Section(
        "Interval",
        "Of the 90 % interval around the predicted accuracy: how often it holds the truth, and how wide it is; and how "
        "often it holds the truth among networks of each third of the index's true accuracies.",
        {
            "interval.coverage": "coverage",
            "interval.width": "width",
            **{f"interval.coverage@{third}": f"{third} third" for third in THIRDS},
        },
    ),
    Section(
        "Cost",
        "Trained parameters, checkpoints embedded a second from memory, and seconds to fit; all in one thread, "
        "while other fits were running.",
        {"cost.parameters": "parameters", "cost.per_second": "checkpoints/s", "cost.fit_seconds": "seconds to fit"},
    ),
)
FORECAST = (
    "Mean absolute error of a run's final accuracy, guessed from an earlier checkpoint: the median of how the 10 runs "
    "ended that it is most like at its epoch (any epoch: at whatever epoch). That needs no data; the last two rows do, "
    "to measure the run's own accuracies so far."
)
DIFFERENCE = (
    "The method's value minus that of {against}: better where above 0, certainly so where the whole interval is. "
    "R², tau: of the prediction; @10: precision among and accuracy of the 10 nearest."
)
ELSEWHERE = (
    "Rank correlation (tau) of predicted and true accuracy on the test runs of the column's zoo, fitted on the row's."
)


def tables(rows: Sequence[MetricRow], zoo: str) -> list[Table]:
    """One zoo's tables, of pooled seeds."""
    pooled = [row for row in rows if row.zoo == zoo and row.seed is None and row.on is None]
    plain = [row for row in pooled if row.against is None]
    shown = [_table(section, plain) for section in SECTIONS[:-2]]
    shown += [_table(_forecast_section(plain), plain)]
    shown += [_table(section, plain) for section in SECTIONS[-2:]]
    for against in dict.fromkeys(row.against for row in pooled if row.against):
        columns = {
            "prediction.r2": "R²",
            "prediction.tau": "tau",
            "precision@10.good": "good @10",
            "precision@10.bad": "bad @10",
            "neighbours.r2": "R² @10",
        }
        section = Section(f"Difference from {against}", DIFFERENCE.format(against=against), columns)
        shown.append(_table(section, [row for row in pooled if row.against == against]))
    return [table for table in shown if table.rows]


def elsewhere_tables(rows: Sequence[MetricRow]) -> list[Table]:
    """A matrix of zoos for each method, of pooled seeds."""
    foreign = {(r.method, r.zoo, r.on): r for r in rows if r.on and r.seed is None and r.metric == "prediction.tau"}
    home = {
        (r.method, r.zoo, r.zoo): r
        for r in rows
        if r.on is None and r.against is None and r.seed is None and r.metric == "prediction.tau"
    }
    shown = []
    for method in dict.fromkeys(method for method, _, _ in foreign):
        zoos = list(dict.fromkeys(zoo for fitted, zoo, _ in foreign if fitted == method))
        all_rows = {**foreign, **home}
        cells = tuple((zoo, *(_cell(all_rows.get((method, zoo, on))) for on in zoos)) for zoo in zoos)
        shown.append(_numbers(method, ("fitted on", *zoos), cells))
    return shown


def _forecast_section(rows: Sequence[MetricRow]) -> Section:
    epochs = sorted({int(row.metric.split("@")[1]) for row in rows if row.metric.startswith("forecast.mae@")})
    if len(epochs) > MOST_EPOCHS:
        epochs = [epochs[round(i * (len(epochs) - 1) / (MOST_EPOCHS - 1))] for i in range(MOST_EPOCHS)]
    columns = {"forecast.mae_any_epoch": "any epoch", "forecast.mae": "all"}
    columns |= {f"forecast.mae@{epoch}": f"epoch {epoch}" for epoch in epochs}
    return Section("Forecast", FORECAST, columns)


def _table(section: Section, rows: Sequence[MetricRow]) -> Table:
    """Only methods with a value, and only columns that one of them has."""
    values = {(row.method, row.metric): row for row in rows if row.metric in section.columns}
    columns = [metric for metric in section.columns if any(metric == present for _, present in values)]
    methods = dict.fromkeys(method for method, _ in values)
    cells = tuple((method, *(_cell(values.get((method, metric))) for metric in columns)) for method in methods)
    headings = ("method", *(section.columns[metric] for metric in columns))
    return _numbers(section.title, headings, cells, section.meaning)


def _numbers(title: str, columns: tuple[str, ...], rows: tuple[tuple[str, ...], ...], meaning: str = "") -> Table:
    """A table of names and their numbers."""
    return Table(title, columns, rows, right=tuple(range(1, len(columns))), meaning=meaning)


def _cell(row: MetricRow | None) -> str:
    """The value and its interval: `0.912 [.87, .95]`."""
    if row is None:
        return "–"
    value = f"{row.value:,.0f}" if row.metric.startswith("cost.") else f"{row.value:.3f}"
    if 0 < abs(row.value) < 0.001 and row.metric.split(".")[0] in ("twin", "rescaled"):
        return f"{row.value:.0e}"
    if row.low is None or row.high is None or row.metric.startswith("cost."):
        return value
    return f"{value} [{_short(row.low)}, {_short(row.high)}]"


def _short(value: float) -> str:
    text = f"{value:.2f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def markdown(rows: Sequence[MetricRow], settings: dict[str, int]) -> str:
    """All tables as Markdown."""
    lines = [
        "# How true the answers are about networks nobody has seen",
        "",
        f"Made by `weightsearch evaluate` {version('weightsearch')}. Each zoo is split by run: the training runs "
        "(70 %) are the index, checkpoints of the test runs (15 %) the queries. Encoders are fitted with their default "
        f"settings, at most {settings['epochs']} epochs; {settings['seeds']} seed(s) share the test part and deal the "
        "rest into training and validation anew. Values are means over seeds, with the 95 % interval of a bootstrap "
        "over test runs.",
    ]
    for zoo in dict.fromkeys(row.zoo for row in rows):
        lines += ["", f"## {zoo}"]
        lines += [text for table in tables(rows, zoo) for text in ("", table.to_markdown())]
    foreign = elsewhere_tables(rows)
    if foreign:
        lines += ["", "## Elsewhere", "", ELSEWHERE]
        lines += [text for table in foreign for text in ("", table.to_markdown())]
    return "\n".join(lines) + "\n"


def render(rows: Sequence[MetricRow]) -> RenderableType:
    """All tables for the terminal."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for zoo in dict.fromkeys(row.zoo for row in rows):
        parts += [Text(), Text(zoo, style="bold reverse")]
        parts += [part for table in tables(rows, zoo) for part in (Text(), table.to_rich())]
    foreign = elsewhere_tables(rows)
    if foreign:
        parts += [Text(), Text("elsewhere", style="bold reverse"), Text(ELSEWHERE, style="dim")]
    parts += [part for table in foreign for part in (Text(), table.to_rich())]
    return Group(*parts)
