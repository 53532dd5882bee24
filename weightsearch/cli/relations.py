"""Commands about what checkpoints are to each other: diff, duplicates, lineage, tidy, pack, unpack."""

from __future__ import annotations

import json
import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightsearch.cli.common import Force, IndexArgument, IndexOption, Quiet, chosen_index, example, say, tell
from weightsearch.errors import UsageError, WeightsearchError
from weightsearch.text_table import counted

if TYPE_CHECKING:
    from weightsearch.relations import Comparison, LayerChange

app = typer.Typer()
COLUMNS = 80  # of a line of `diff`
NAMES = 32  # letters of tensors' names that are lined up; what stands behind longer ones has a line of its own
UNCHANGED = ("identical", "same-weights", "same-function")


@app.command(
    epilog=example(
        "weightsearch diff base.safetensors tuned.safetensors",
        "weightsearch diff hf://org/base/model.safetensors tuned.safetensors",
        "weightsearch diff last-release.onnx this-release.onnx --expect changed",
    )
)
def diff(
    a: Annotated[str, typer.Argument(help="A checkpoint file, or its URL.", metavar="A")],
    b: Annotated[str, typer.Argument(help="Another.", metavar="B")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    expect: Annotated[
        str | None,
        typer.Option(help="changed: exit with 1 if b does what a does; or a relation that must hold, as `relative`."),
    ] = None,
    all_layers: Annotated[bool, typer.Option("--all", help="Every tensor, the untouched ones too.")] = False,
) -> None:
    """Say what two checkpoints are to each other, and what became of each tensor."""
    from weightsearch.relations import Kind
    from weightsearch.relations import diff as run

    if expect is not None and expect != "changed" and expect not in list(Kind):
        raise UsageError(f"--expect {expect}: choose changed or one of {', '.join(Kind)}")
    comparison = run(a, b)
    if as_json:
        print(json.dumps(comparison.to_dict()))
    else:
        tell(*_lines(comparison, all_layers))
    relation = str(comparison.relation)
    if expect == "changed" and relation in UNCHANGED:
        raise WeightsearchError(f"expected changed weights, but {b} is {relation} to {a}: {comparison.summary}")
    if expect not in (None, "changed", relation, *map(str, comparison.also)):
        raise WeightsearchError(f"expected {expect}, but {b} is {relation} to {a}: {comparison.summary}")


@app.command(epilog=example("weightsearch duplicates", "weightsearch duplicates --index runs/indexes/models --json"))
def duplicates(
    given: IndexArgument = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    index: IndexOption = None,
) -> None:
    """List the groups of files that hold the same weights, whatever their format, and what could be freed."""
    path = chosen_index(given, index)
    from weightsearch.relations import duplicates as run

    groups = run(path)
    if as_json:
        print(json.dumps({"freed_bytes": sum(g.freed for g in groups), "groups": [g.to_dict() for g in groups]}))
        return
    for group in groups:
        tell(f"{len(group.sources)} files of the same weights, {_size(group.freed)} could be freed")
        for number, (source, size, kind) in enumerate(zip(group.sources, group.bytes, group.how, strict=True)):
            tell(f"  {'keep' if not number else str(kind):13} {_size(size):>10}  {source}")
    tell(f"{counted(len(groups), 'group')}, {_size(sum(group.freed for group in groups))} could be freed")


@app.command(
    epilog=example(
        "weightsearch lineage",
        "weightsearch lineage --dot | dot -Tsvg > lineage.svg",
        "weightsearch lineage --html > l.html",
    )
)
def lineage(
    given: IndexArgument = None,
    html: Annotated[bool, typer.Option("--html", help="A page.")] = False,
    dot: Annotated[bool, typer.Option("--dot", help="For Graphviz.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    cyclonedx: Annotated[bool, typer.Option("--cyclonedx", help="A bill of materials with pedigrees.")] = False,
    index: IndexOption = None,
) -> None:
    """Draw the graph of an index: copies, runs, derivations and merges; directed only where something tells it."""
    if html + dot + as_json + cyclonedx > 1:
        raise UsageError("choose one of --html, --dot, --json and --cyclonedx")
    path = chosen_index(given, index)
    from weightsearch.relations import lineage as run

    graph = run(path)
    if as_json or cyclonedx:
        print(json.dumps(graph.to_dict() if as_json else graph.to_cyclonedx(), indent=1))
    else:
        print(graph.to_html() if html else graph.to_dot() if dot else graph.to_text().rstrip("\n"))


@app.command(
    epilog=example("weightsearch tidy models/ --plan plan.json", "weightsearch tidy models/ --plan plan.json --apply")
)
def tidy(
    folder: Annotated[Path, typer.Argument(help="A folder of checkpoints.", metavar="FOLDER")],
    plan: Annotated[
        Path | None, typer.Option(help="File to write the plan to, or with --apply to read it from.")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Move the plan's files to a trash folder.")] = False,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="The plan as one JSON object.")] = False,
    quiet: Quiet = False,
) -> None:
    """Say which files of a folder could go and what would be lost. Nothing is moved without --apply."""
    from weightsearch.files import refuse_to_overwrite
    from weightsearch.progress import progress_bar
    from weightsearch.relations import tidy as run

    if apply:
        if plan is None:
            raise UsageError("--apply moves what a plan says: give --plan FILE, made before without --apply")
        wanted = run.read_plan(plan)
        if wanted.folder.resolve() != folder.resolve():
            raise UsageError(f"{plan} is the plan of {wanted.folder}, not of {folder}")
        trash, moved = run.apply(wanted)
        tell(f"{moved} files moved to {trash}; delete that folder to free {_size(wanted.freed)}")
        return
    if plan is not None:
        refuse_to_overwrite(plan, force)
    with progress_bar("reading", None, unit="files", quiet=quiet) as advance:
        proposal = run.plan(folder, advance)
    if plan is not None:
        proposal.write(plan)
    if as_json:
        print(json.dumps(proposal.to_dict()))
        return
    for removal in proposal.removals:
        tell(
            f"{_size(removal.bytes):>10}  {removal.path}",
            f"            the weights stay in {removal.keep}; lost: {removal.lost}",
        )
    for path, reason in proposal.unread:
        say(f"not read: {path}: {reason}")
    sizes = f"{_size(proposal.freed)} of {_size(proposal.bytes)}"
    tell(f"{len(proposal.removals)} of {proposal.files} files could go: {sizes}")
    if proposal.removals:
        where = plan or "plan.json"
        step = f"weightsearch tidy {folder} --plan {where}" + (" --apply" if plan is not None else "")
        say(f"nothing was moved; next: {step}")


@app.command(
    epilog=example(
        "weightsearch pack models/ models.pack",
        "weightsearch pack models/ models.small.pack --lossy 8",
        "weightsearch unpack models.pack restored/",
    )
)
def pack(
    folder: Annotated[Path, typer.Argument(help="A folder of checkpoints.", metavar="FOLDER")],
    out: Annotated[Path, typer.Argument(help="Directory to make.", metavar="OUT")],
    lossy: Annotated[
        int | None,
        typer.Option(help="Round weights to so many bits, 2 to 16, and say what that costs.", show_default="exact"),
    ] = None,
    index: IndexOption = None,
    quiet: Quiet = False,
) -> None:
    """Store a folder's checkpoints as their differences, each to be recovered bit for bit. The folder stays.

    With --lossy, what comes back are tensors in .safetensors files; an index says what that costs.
    """
    from weightsearch.progress import progress_bar
    from weightsearch.relations.pack import pack as run

    with progress_bar("packing", None, unit="files", quiet=quiet) as advance:
        summary = run(folder, out, advance, lossy)
    if lossy is not None:
        _say_cost(folder, out, summary.errors, lossy, index)
    for line in summary.left_out:
        say(f"kept whole: {line}")
    tell(
        f"{summary.out}: {summary.files} files, {_size(summary.bytes)} in {_size(summary.packed_bytes)} "
        f"({summary.ratio:.1%})"
    )


@app.command(
    epilog=example("weightsearch unpack models.pack restored/", "weightsearch unpack models.pack . --only a.pt")
)
def unpack(
    packed: Annotated[Path, typer.Argument(help="What `pack` made.", metavar="PACK")],
    out: Annotated[Path, typer.Argument(help="Folder to write to.", metavar="OUT")],
    only: Annotated[str | None, typer.Option(help="One file, by its path in the pack.", show_default="all")] = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Recover packed checkpoints bit for bit."""
    from weightsearch.progress import progress_bar
    from weightsearch.relations.pack import unpack as run

    with progress_bar("unpacking", None, unit="files", quiet=quiet) as advance:
        count = run(packed, out, only, advance, overwrite=force)
    tell(f"{out}: {count} files recovered")


def _say_cost(folder: Path, out: Path, errors: dict[str, float], bits: int, index: Path | None) -> None:
    if errors:
        mean, worst = sum(errors.values()) / len(errors), max(errors, key=errors.__getitem__)
        tell(f"weights rounded to {bits} bits: off by {mean:.2%} of their size, at most {errors[worst]:.2%} ({worst})")
    from weightsearch.search.pack_cost import pack_cost

    try:
        tell(pack_cost(folder, out, chosen_index(None, index)).to_text())
    except WeightsearchError as error:
        say(f"its cost in predicted accuracy is not known: {error}")


def _lines(comparison: Comparison, all_layers: bool) -> list[str]:
    """For a terminal of 80 columns."""
    also = f" (also {', '.join(comparison.also)})" if comparison.also else ""
    arrow = {"a-to-b": ", a → b", "b-to-a": ", b → a"}.get(str(comparison.direction), "")
    lines = _wrapped(f"{comparison.relation}{also}{arrow}: {comparison.summary} [{comparison.certainty}]")
    evidence = comparison.evidence
    if evidence.get("trained_further"):
        lines += _wrapped(f"{evidence['trained_further']} was trained further, by {evidence['trained_further_by']}")
    shown = [layer for layer in comparison.layers if all_layers or str(layer.state) != "untouched"]
    names = [layer.a or layer.b or "" for layer in shown]
    width = min(max(map(len, names), default=0), NAMES)
    for layer, name in zip(shown, names, strict=True):
        line = f"  {name:{width}}  {_change(layer)}"
        lines += [line] if len(line) <= COLUMNS else [*_wrapped(f"  {name}"), *_wrapped(f"    {_change(layer)}")]
    untouched = len(comparison.layers) - len(shown)
    if untouched:
        lines.append(f"  {counted(untouched, 'tensor')} untouched")
    return [*lines, *_wrapped(comparison.unseen)]


def _change(layer: LayerChange) -> str:
    """What became of a tensor, and the numbers that show it."""
    other = f" = {layer.b}" if layer.b and layer.a and layer.a != layer.b else ""
    detail = f" ({layer.detail})" if layer.detail else ""
    values = [f"{name} {value:.3g}" for name, value in (("equal", layer.equal), ("cosine", layer.cosine)) if value]
    if layer.difference is not None:
        values.append("moved from 0" if math.isinf(layer.difference) else f"moved by {layer.difference:.3g}")
    if layer.score is not None:
        values.append(f"score {layer.score:.3g}")
    numbers = f"  {', '.join(values)}" if values and str(layer.state) != "untouched" else ""
    return f"{layer.state}{detail}{other}{numbers}"


def _wrapped(text: str) -> list[str]:
    """Lines of at most 80 columns; those after the first are indented by two more than it is."""
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    return textwrap.wrap(text, COLUMNS, subsequent_indent=indent, break_on_hyphens=False)


def _size(count: int | float) -> str:
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
