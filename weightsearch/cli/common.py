"""What the commands share: options, the epilog with examples, words on stdout and stderr."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightsearch import paths as runs
from weightsearch.errors import UsageError
from weightsearch.text_table import printable

if TYPE_CHECKING:
    from weightsearch.checkpoints.discovery import Sources


def as_given(text: str) -> Path:
    """An argument that is a path or a URL."""
    from weightsearch.checkpoints.remote.paths import as_path

    return as_path(text)


def _on_this_disk(path: Path | None) -> Path | None:
    from weightsearch.checkpoints.remote.paths import local

    return None if path is None else local(path, "an index lies")


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Device = Annotated[
    str, typer.Option(help="cpu, or a graphics card: cuda, cuda:1 (not run on one yet).", metavar="DEVICE")
]
Workers = Annotated[int | None, typer.Option(help="Fits at a time.", show_default="one per core, 4 on a graphics card")]
IndexOption = Annotated[
    Path | None,
    typer.Option(
        "--index",
        help="Index directory.",
        callback=_on_this_disk,
        show_default="$WEIGHTSEARCH_INDEX, configured, newest in runs/, else the reference index",
    ),
]
OwnIndexOption = Annotated[
    Path | None,
    typer.Option(
        "--index",
        help="Index directory.",
        callback=_on_this_disk,
        show_default="$WEIGHTSEARCH_INDEX, configured, the only one in runs/indexes",
    ),
]

IndexArgument = Annotated[
    Path | None,
    typer.Argument(help="Index directory, as --index.", metavar="INDEX", show_default=False, callback=_on_this_disk),
]
Force = Annotated[bool, typer.Option("--force", help="Write over a file that is there.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")]

Inventory = Annotated[
    Path | None,
    typer.Option(
        help="Table of remote files' path, size and etag (.parquet, .csv), in place of listing.", show_default="none"
    ),
]
Metadata = Annotated[
    Path | None,
    typer.Option(help="Table of accuracies and other columns: .csv, .json or .parquet.", show_default="none"),
]
Key = Annotated[str, typer.Option(help="Its column of the files' paths, ends of paths, or names.")]
RunColumn = Annotated[
    str | None, typer.Option(help="Name in the metadata that tells runs apart.", show_default="by folder")
]
RunPattern = Annotated[
    str | None,
    typer.Option(
        help="Regular expression for the path that tells runs apart; its first group counts.", show_default="by folder"
    ),
]
Dataset = Annotated[
    str | None, typer.Option(help="What the networks were trained on.", show_default="what the files say")
]
Ray = Annotated[
    str | None,
    typer.Option(
        help="Run as tasks on a Ray cluster: local, auto, or its address.", metavar="ADDRESS", show_default="none"
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights", help="Key of the network in files that hold several: ema, model.generator.", show_default="chosen"
    ),
]


@dataclass(frozen=True)
class FileOptions:
    """What commands that read checkpoint files are told of them."""

    metadata: Metadata = None
    key: Key = "path"
    run_column: RunColumn = None
    run_pattern: RunPattern = None
    weights: Weights = None
    dataset: Dataset = None
    inventory: Inventory = None

    @property
    def sources(self) -> Sources:
        from weightsearch.checkpoints.discovery import Sources

        return Sources.make(self.metadata, self.key, self.run_column, self.run_pattern, self.weights)


def with_file_options(command: Callable[..., None]) -> Callable[..., None]:
    """Puts the options in the place of a command's parameter `files`, which they come as."""
    signature = inspect.signature(command, eval_str=True)
    options = list(inspect.signature(FileOptions, eval_str=True).parameters.values())

    @wraps(command)
    def run(**given: Any) -> None:
        files = FileOptions(**{option.name: given.pop(option.name) for option in options})
        command(files=files, **given)

    parameters = [
        inner for outer in signature.parameters.values() for inner in (options if outer.name == "files" else [outer])
    ]
    parameters.sort(key=lambda parameter: parameter.default is not inspect.Parameter.empty)
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def chosen_index(given: Path | None, option: Path | None, default: Callable[[], Path] = runs.newest_index) -> Path:
    """The index that a command asks about, named in either way or found, which is said on stderr."""
    if given is not None and option is not None and given != option:
        raise UsageError(f"{given} and --index {option}: name one index")
    path = given or option or default()
    say(f"index: {path}")
    return path


def example(*commands: str) -> str:
    """An epilog for `--help`, one command a line."""
    return "\n\n".join(["Example:", *commands])


def show(renderable: Any) -> None:
    """Prints with rich, which neither obeys markup in strangers' text nor passes on what a terminal would obey."""
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(markup=False, emoji=False, highlight=False, width=120)  # a pipe or a file has no width
    console.print(Escaped(renderable))


class Escaped:
    """A renderable whose text has its control characters escaped."""

    def __init__(self, renderable: Any) -> None:
        self.renderable = renderable

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        for segment in console.render(self.renderable, options):
            if segment.control or segment.text == "\n" or segment.text.isprintable():
                yield segment
            else:
                lines = segment.text.split("\n")
                yield segment._replace(text="\n".join(map(printable, lines)))


def tell(*lines: str) -> None:
    """Prints lines to stdout, with whatever a terminal would obey in strangers' text escaped, line breaks too."""
    print("\n".join(map(printable, lines)))


def say(text: str) -> None:
    print(printable(text), file=sys.stderr)


def complain(error: object) -> None:
    print(f"error: {printable(str(error))}", file=sys.stderr)
