"""Commands that ask an index: query, get."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightsearch import paths as runs
from weightsearch.cli.common import (
    Escaped,
    Force,
    IndexOption,
    Inventory,
    Quiet,
    Weights,
    as_given,
    complain,
    example,
    say,
    tell,
)
from weightsearch.errors import UsageError, WeightsearchError

if TYPE_CHECKING:
    from weightsearch.relations import Relatives, SignatureIndex

RELATIVES_SHOWN = 4

app = typer.Typer()


@app.command(
    epilog=example(
        "weightsearch query index/examples/good.pt --k 5",
        "weightsearch query sweep/ --where \"optimizer = 'adam'\" --per-run 1 --json",
        "weightsearch query s3://bucket/run-7/model.safetensors",
        "weightsearch query --id 1f00c94a --not-run",
    )
)
def query(
    models: Annotated[
        list[str] | None, typer.Argument(help="Checkpoint files, folders of them, or URLs.", metavar="MODEL.pt")
    ] = None,
    id_: Annotated[
        list[str] | None, typer.Option("--id", help="Of an indexed checkpoint, or how it begins; repeatable.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="Rows in each list.")] = 10,
    index: IndexOption = None,
    where: Annotated[
        str | None, typer.Option(help='Condition that neighbours meet, in SQL: "epoch > 5 and dropout < 0.1".')
    ] = None,
    good: Annotated[
        str | None, typer.Option(help="Good is at least this: 0.9, or q75 for a quantile.", show_default="q75")
    ] = None,
    bad: Annotated[str | None, typer.Option(help="Bad is at most this.", show_default="q25")] = None,
    within: Annotated[float | None, typer.Option(help="Greatest distance of a neighbour.", show_default="any")] = None,
    not_run: Annotated[bool, typer.Option("--not-run", help="Leave out neighbours of the network's own run.")] = False,
    per_run: Annotated[
        int | None, typer.Option(help="At most this many neighbours of one run.", show_default="any")
    ] = None,
    run: Annotated[str | None, typer.Option(help="The network's run, where its file does not say.")] = None,
    epoch: Annotated[float | None, typer.Option(help="The network's epoch, where its file does not say.")] = None,
    activation: Annotated[
        str | None, typer.Option(help="The network's: relu, tanh, ...", show_default="what its file says")
    ] = None,
    weights: Weights = None,
    inventory: Inventory = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Its layers beside those of the nearest good and bad one.")
    ] = False,
    lists: Annotated[bool, typer.Option("--all", help="The nearest, nearest good and nearest bad in full.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="How the search was done, and its time.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line instead of tables.")] = False,
) -> None:
    """What a network's weights say: its accuracy, its nearest good and bad neighbours, what became of runs like it."""
    if k < 1:
        raise UsageError(f"--k {k}: choose at least 1")
    if not models and not id_:
        raise UsageError("query needs a MODEL file or folder, or the --id of an indexed checkpoint")
    from weightsearch.checkpoints.remote.paths import located

    given = located(models or (), inventory)
    if given and not id_ and not (as_json or layers or lists or explain) and all(path.is_dir() for path in given):
        sweep(given, index=index)  # a table; --json, --all and --layers ask about each
        return
    path = index or runs.newest_index()
    say(f"index: {path}")

    from weightsearch.search.answer import SCHEMA
    from weightsearch.search.index import Index

    opened = Index.open(path)
    asked: list[tuple[Path | None, str | None]] = [(None, id) for id in id_ or ()]
    failures = 0
    if models:
        from weightsearch.checkpoints.discovery import find_files

        files, missing = find_files(given)
        if not files and not asked and len(missing) == 1:
            raise WeightsearchError(f"{missing[0].path}: {missing[0].reason}")
        for bad_file in missing:
            complain(f"{bad_file.path}: {bad_file.reason}")
            if as_json:
                failed = {"schema": SCHEMA, "path": str(bad_file.path), "error": bad_file.reason}
                print(json.dumps(failed), flush=True)
        asked = [*((file.path, None) for file in files), *asked]
        failures = len(missing)
    total = len(asked) + failures
    signatures = _signatures(path)
    for number, (model, id) in enumerate(asked):
        if number and not as_json:
            print()
        related = _relatives(signatures, model)
        try:
            answer = opened.query(
                model, k, id=id, where=where, good=good, bad=bad, within=within, not_run=not_run, per_run=per_run,
                run=run, epoch=epoch, activation=activation, weights=weights,
            )  # fmt: skip
        except UsageError:
            raise
        except WeightsearchError as error:  # the others still get their answers
            if related is not None:  # what it is was answered; how good it is needs an encoder
                if as_json:
                    told = {"schema": SCHEMA, "path": str(model), "error": str(error), "relations": related.to_dict()}
                    print(json.dumps(told), flush=True)
                else:
                    _show_relatives(related)
                    say(f"note: {error}")
                continue
            if total == 1:
                raise
            complain(error)
            if as_json:
                print(json.dumps({"schema": SCHEMA, "path": str(model or id), "error": str(error)}), flush=True)
            failures += 1
            continue
        if as_json:
            relations = {} if related is None else {"relations": related.to_dict()}
            print(json.dumps({**answer.to_dict(), **relations}), flush=True)
        else:
            _show_answer(answer, explain, layers, lists)
            if related is not None:
                _show_relatives(related)
    if failures:
        raise WeightsearchError(f"{failures} of {total} {'networks' if total > 1 else 'network'} could not be answered")


@app.command(epilog=example("weightsearch sweep lightning_logs", "weightsearch sweep runs/ --csv runs.csv --all"))
def sweep(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of runs, or files; or URLs.", metavar="FOLDER", parser=as_given)
    ],
    csv: Annotated[
        Path | None, typer.Option(help="Write the table to this .csv, recipes as columns.", show_default="none")
    ] = None,
    lists: Annotated[bool, typer.Option("--all", help="All runs, not the best twenty alone.")] = False,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
    inventory: Inventory = None,
    index: IndexOption = None,
    quiet: Quiet = False,
) -> None:
    """Rank the runs of a folder: accuracy or prediction, forecast, what to do with each, and which settings matter."""
    from weightsearch.checkpoints.remote.paths import located
    from weightsearch.files import refuse_to_overwrite, write_whole
    from weightsearch.progress import progress_bar
    from weightsearch.search import sweep as library
    from weightsearch.search.index import Index

    if csv is not None:
        refuse_to_overwrite(csv, force)
    given = located(folders, inventory)
    missing = [folder for folder in given if not folder.exists()]
    if missing:
        raise WeightsearchError(f"{missing[0]} does not exist")
    path = index or runs.newest_index()
    say(f"index: {path}")
    with progress_bar("reading", None, unit="files", quiet=quiet) as advance:
        table = library.sweep(given, Index.open(path), advance=advance)
    for name, reason in table.failures:
        complain(f"{name}: {reason}")
    if csv is not None:
        write_whole(csv, table.to_csv())
        say(f"written: {csv}")
    if as_json:
        print(json.dumps(table.to_dict()))
        return
    from rich.console import Console

    console = Console()
    has_width = console.is_terminal or "COLUMNS" in os.environ
    tell(*library.lines(table, max(60, console.width) if has_width else 120, None if lists else 20))


@app.command(epilog=example("weightsearch get 1f00c94a --out model.pt"))
def get(
    id: Annotated[
        str, typer.Argument(help="Of an indexed checkpoint, or how it begins; queries show it.", metavar="ID")
    ],
    out: Annotated[Path, typer.Option(help="File to write: .pt, .pth, .ckpt, .bin or .safetensors.")],
    index: IndexOption = None,
    force: Force = False,
) -> None:
    """Write an indexed checkpoint's weights back as a state dict, from the zoo or the file that they came from."""
    path = index or runs.newest_index()
    say(f"index: {path}")

    from weightsearch.search.index import Index

    print(Index.open(path).get(id, out, overwrite=force))


def _signatures(path: Path) -> SignatureIndex | None:
    """The index's signatures, None where it has none."""
    from weightsearch.relations import SignatureIndex

    signatures = SignatureIndex(path)
    return signatures if len(signatures) else None


def _relatives(signatures: SignatureIndex | None, model: Path | None) -> Relatives | None:
    """What a file is to the indexed ones; None where that cannot be told, of which the answer's error will say why."""
    if signatures is None or model is None:
        return None
    try:
        return signatures.relatives(model)
    except WeightsearchError:
        return None


def _show_relatives(related: Relatives) -> None:
    tell(f"{related.path}: {related.summary}")
    for relative in related.relatives[1:RELATIVES_SHOWN]:
        tell(f"  {relative.comparison.relation.to(relative.source)}: {relative.comparison.summary}")
    if len(related.relatives) > RELATIVES_SHOWN:
        tell(f"  and {len(related.relatives) - RELATIVES_SHOWN} more")
    if related.unseen:
        tell(f"  {related.unseen}")


def _show_answer(answer: Any, explain: bool, layers: bool, lists: bool) -> None:
    """As wide as the terminal; into a pipe or a file as text without colours."""
    from rich.console import Console

    from weightsearch.cli import render

    console = Console()
    has_width = console.is_terminal or "COLUMNS" in os.environ
    width = max(60, console.width) if has_width else 200 if lists or layers else render.wording.WIDTH
    shown = render.answer(answer, explain, layers=layers, lists=lists, width=min(width, 120))
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    console.print(Escaped(shown), soft_wrap=not has_width)
