"""An index's card, its README.md: how it was made and how well it predicts."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from weightsearch.encoders import Encoder
from weightsearch.text_table import Table
from weightsearch.zoo.store import Zoo

if TYPE_CHECKING:
    from weightsearch.training.summary import TrainSummary


def index_card(summary: TrainSummary, zoo: Zoo, encoder: Encoder) -> str:
    """Markdown about the index that `summary` describes."""
    info, test, runs = zoo.info, summary.test, summary.runs
    parts = [
        f"# Index of {info.name}",
        f"{summary.checkpoints:,} checkpoints of a zoo of {info.dataset} networks ({info.origin}), made by "
        f"`weightsearch train`, version {version('weightsearch')}. Each network is\n"
        f"{zoo.architecture.describe()}.",
        f"The encoder is `{summary.method}`: {encoder.parameters_count:,} parameters, an embedding of "
        f"{encoder.embedding_width} values. The split into training,\nvalidation and test is {summary.split}; these "
        f"parts hold checkpoints of {runs['train']}, {runs['validation']} and {runs['test']} runs. On the\n"
        f"{test.count:,} checkpoints of the test part, which neither the fit nor the choice of the method saw, the "
        f"predicted\n{summary.target.column.replace('_', ' ')} scores:",
        _table(("R²", "Kendall's tau", "mean absolute error"), [(test.r2, test.tau, test.mae)]),
        _interval(summary),
        "Methods compared on the validation part:",
        _table(
            ("method", "R²", "Kendall's tau", "mean absolute error", ""),
            [
                (f"`{method}`", score.r2, score.tau, score.mae, "kept" if method is summary.method else "")
                for method, score in summary.validation.items()
            ],
        ),
    ]
    if summary.examples:
        parts += [
            "Checkpoints to query with, from test runs that are not in the index:",
            _table(
                ("file", "test accuracy", "epoch", "run"),
                [
                    (f"`examples/{example.path.name}`", example.test_accuracy, example.epoch, example.run)
                    for example in summary.examples
                ],
            ),
        ]
    return "\n\n".join(parts) + "\n"


def _interval(summary: TrainSummary) -> str:
    calibration = summary.calibration
    if calibration is None or calibration.interval is None:
        return "Predictions come without an interval: there were too few test runs to set some aside for calibration."
    interval = calibration.interval
    return (
        f"Each prediction comes with a {interval.coverage:.0%} interval (split conformal), calibrated on one\n"
        f"checkpoint of each of {interval.runs} further runs, which served nothing else. It held the truth of "
        f"{calibration.found_coverage:.0%} of the test part, which is {calibration.found_runs} runs."
    )


def _table(columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    texts = tuple(tuple(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row) for row in rows)
    numbers = [position for position, cell in enumerate(rows[0]) if isinstance(cell, float | int)]
    return Table("", columns, texts, right=tuple(numbers)).to_markdown()
