"""Twelve everyday questions, as the command line answers them at 80 and at 120 columns.

python benchmarks/transcripts.py [--out benchmarks/results/transcripts.md]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shlex
import sys
import tempfile
from pathlib import Path

from weightsearch import cli
from weightsearch.checkpoints.state_dict import read_checkpoint, write_checkpoint

ROOT = Path(__file__).parent.parent
WIDTHS = (80, 120)
QUESTIONS = (
    ("How good is this network?", "query index/examples/very-good.pt --index index"),
    ("And this one, whose file says more than its weights?", "query index/examples/good.pt --index index"),
    ("Is it worth to go on with this run?", "query index/examples/bad.pt --index index"),
    (
        "What of another architecture?",
        "query index/4f53cda18c2b/examples/resnet-1.pt --index index",
    ),
    ("Is something wrong with it?", "query BROKEN/zeroed.pt --index index"),
    ("What is unlike in its weights?", "query index/examples/middling.pt --index index --layers -k 3"),
    (
        "Which ones like it were trained with Adam?",
        "query index/examples/good.pt --index index --where \"optimizer = 'adam'\" -k 3 --all",
    ),
    ("What did I mistype?", 'query index/examples/good.pt --index index --where "tst_accuracy > 0.9"'),
    ("Which of these runs are good, which can stop?", "sweep index/examples --index index --quiet"),
    ("What does the index say of one of its own?", "query --id 2ac39062 --index index"),
    ("What is in this index?", "info index"),
    ("What are these two to each other?", "diff index/examples/good.pt index/examples/very-good.pt"),
)


def answered(command: str, width: int) -> tuple[str, int]:
    """What a command prints, errors included, and its exit code."""
    out = io.StringIO()
    os.environ["COLUMNS"] = str(width)
    sys.argv = ["weightsearch", *shlex.split(command)]
    code: object = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code
    return out.getvalue().rstrip(), int(str(code or 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "transcripts.md")
    options = parser.parse_args()
    out = options.out.resolve()
    os.chdir(ROOT)
    parts = ["# Twelve questions", "By `python benchmarks/transcripts.py`."]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = read_checkpoint("index/examples/good.pt")
        weights = checkpoint.weights.copy()
        checkpoint.architecture.matrices(weights[None])[1][:] = 0  # views of the weights
        write_checkpoint(Path(folder) / "zeroed.pt", weights, checkpoint.architecture, {"epoch": 60})
        for question, command in QUESTIONS:
            parts.append(f"## {question}")
            for width in WIDTHS:
                text, code = answered(command.replace("BROKEN", folder), width)
                text = text.replace(f"{folder}/", "")
                ending = "" if code == 0 else f"\n[ends with {code}]"
                shown = command.replace("BROKEN/", "")
                parts.append(f"At {width} columns:\n\n```\n$ weightsearch {shown}\n{text}{ending}\n```")
    out.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
