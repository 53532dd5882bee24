"""The command line: parse, call one library function, print. Results to stdout, progress and errors to stderr."""

from __future__ import annotations

import copy
import logging
import os
import re
import sys
from itertools import pairwise
from typing import Annotated, Any

import typer
import typer.core

from weightsearch.cli import add as adding
from weightsearch.cli import demo
from weightsearch.cli import evaluate as measuring
from weightsearch.cli import index as upkeep
from weightsearch.cli import query as asking
from weightsearch.cli import relations as relating
from weightsearch.cli import serve as serving
from weightsearch.cli import shards as sharing
from weightsearch.cli import train as making
from weightsearch.cli import viz as pictures
from weightsearch.cli import zoo as zoos
from weightsearch.cli.common import complain
from weightsearch.errors import Interrupted, UsageError, WeightsearchError
from weightsearch.files import DISK_FULL, is_disk_full
from weightsearch.text_table import printable

INTERRUPTED = "interrupted; run the same command again: what takes long goes on where it was"
WRITTEN = ("--out", "--csv", "--plan", "--quarantine")  # options that name files and folders to write
PANELS = {
    name: panel
    for panel, names in {
        "Search": ("query", "sweep", "get", "diff", "serve"),
        "Your checkpoints": ("import", "add", "embed", "collect", "duplicates", "lineage", "tidy", "pack", "unpack"),
        "Keep an index": ("train", "info", "update", "remove", "export", "rebuild", "doctor"),
        "Pictures": ("viz", "report"),
        "Research": ("build-zoo", "zoo", "tables", "evaluate", "demo"),
    }.items()
    for name in names
}


class _ByPanel(typer.core.TyperGroup):
    """`--help` lists panels, and commands in them, in the order of `PANELS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=list(PANELS).index)


app = typer.Typer(
    cls=_ByPanel,
    help="The search engine for neural-network checkpoints: find networks that perform alike, from weights alone.",
    epilog="Start with `weightsearch demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for part in (zoos, making, adding, sharing, asking, serving, relating, pictures, measuring, upkeep, demo):
    for command in part.app.registered_commands:
        command.rich_help_panel = PANELS[command.name or command.callback.__name__.replace("_", "-")]
    app.add_typer(part.app)
app.add_typer(zoos.zoo_app, name="zoo", rich_help_panel=PANELS["zoo"])


def _asked(arguments: list[str]) -> typer.Typer:
    """The app with the one command that is asked for: to make the options of all takes as long as a search."""
    for part in app.registered_groups:
        for command in part.typer_instance.registered_commands if part.typer_instance and not part.name else ():
            name = command.name or getattr(command.callback, "__name__", "").replace("_", "-")
            if arguments[:1] == [name]:
                narrow = copy.copy(app)
                narrow.registered_groups, narrow.registered_commands = [], [command]
                return narrow
    return app


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"weightsearch {version('weightsearch')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


class _Escaping(logging.Formatter):
    """One line a record, whatever names of strangers it tells."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


def _plain_types() -> None:
    """Help names the kind of value behind an option; a flag takes none, and an argument's name says it."""
    from typer.core import TyperArgument, TyperOption

    shown = getattr(TyperOption, "display_type_rich", None)
    if shown is None:  # a version of typer that does not name them
        return

    def kind(option: TyperOption, ctx: Any) -> str | None:
        text = None if option.is_flag else shown(option, ctx=ctx)
        return text and re.sub(r"list\[(\w+)\]", r"\1", text).replace("<Path>", "<path>")

    TyperOption.display_type_rich = kind  # type: ignore[method-assign, assignment]
    TyperArgument.display_type_rich = lambda self, ctx: None  # type: ignore[method-assign]


def _refuse_to_write_elsewhere(arguments: list[str]) -> None:
    """Raises UsageError for a result that is to be written to a URL."""
    from weightsearch.checkpoints.remote.stores import is_url

    for option, value in pairwise([part for argument in arguments for part in argument.split("=", 1)]):
        if option in WRITTEN and is_url(value):
            raise UsageError(f"{option} {value}: results are written to this machine's disk; name a place here")


def main() -> None:
    """The console script: whatever goes wrong ends in one line on stderr and a non-zero exit code."""
    _plain_types()
    for stream in (sys.stdout, sys.stderr):  # a terminal that is no UTF-8 shows ? for what it lacks
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Escaping("%(levelname)s: %(message)s"))
    logging.addLevelName(logging.WARNING, "warning")
    try:
        _refuse_to_write_elsewhere(sys.argv[1:])
        code = _asked(sys.argv[1:])(prog_name="weightsearch", standalone_mode=False)
        if code == 130:  # typer turns Ctrl-C into this
            print(INTERRUPTED, file=sys.stderr)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(130)
    except UsageError as error:
        complain(error)
        sys.exit(2)
    except Interrupted as error:
        complain(error)
        sys.exit(130)
    except WeightsearchError as error:
        complain(error)
        sys.exit(1)
    except BrokenPipeError:  # `weightsearch ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if is_disk_full(error):
            complain(f"cannot write {error.filename or 'the result'}: {DISK_FULL}")
        else:
            complain(f"{error.filename}: {error.strerror.lower()}" if error.filename and error.strerror else error)
        sys.exit(1)
    except Exception as error:
        if os.environ.get("WEIGHTSEARCH_DEBUG"):
            raise
        if isinstance(error.__cause__, KeyboardInterrupt):  # as Python 3.11 has it of Ctrl-C in `__set_name__`
            print(INTERRUPTED, file=sys.stderr)
            sys.exit(130)
        if hasattr(error, "format_message"):  # typer's own complaints about flags
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "weightsearch"
            if message := error.format_message().replace("\n", " "):  # empty where the help was printed instead
                complain(f"{message} See `{command} --help`.")
            sys.exit(getattr(error, "exit_code", 2))
        complain(
            f"internal: {type(error).__name__}: {str(error).partition(chr(10))[0]} "
            "(a bug; WEIGHTSEARCH_DEBUG=1 shows where)"
        )
        sys.exit(1)
