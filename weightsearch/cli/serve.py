"""The command that serves a page and an API: serve."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from weightsearch.cli.common import IndexArgument, IndexOption, chosen_index, example, say
from weightsearch.errors import WeightsearchError

app = typer.Typer()


@app.command(epilog=example("weightsearch serve", "weightsearch serve runs/indexes/usps --host 0.0.0.0 --token SECRET"))
def serve(
    given: IndexArgument = None,
    host: Annotated[str, typer.Option(help="Address to listen at; others than your own machine need --token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen at.")] = 8080,
    token: Annotated[
        str | None, typer.Option(help="What a caller has to know.", show_default="$WEIGHTSEARCH_TOKEN, or none")
    ] = None,
    largest: Annotated[int, typer.Option(help="MiB that one request may send.", metavar="MIB")] = 512,
    memory: Annotated[int, typer.Option(help="MiB of memory that reading one file may take.", metavar="MIB")] = 4096,
    index: IndexOption = None,
) -> None:
    """Serve a page to drop checkpoints on, and a JSON API. Files are read apart, with limits, and kept nowhere."""
    try:
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise WeightsearchError(f"serve needs {error.name}: pip install 'weightsearch[serve]'") from None
    token = token or os.environ.get("WEIGHTSEARCH_TOKEN")
    if host not in ("127.0.0.1", "localhost", "::1") and token is None:
        raise WeightsearchError(f"--host {host} lets others in: give --token, or stay behind a proxy at 127.0.0.1")
    path: Path = chosen_index(given, index)
    from weightsearch.server import ServeOptions
    from weightsearch.server import serve as run

    options = ServeOptions(
        host=host, port=port, token=token, largest_upload=largest * 2**20, largest_memory=memory * 2**20
    )
    run(path, options, lambda: say(f"http://{host}:{port}/ (Ctrl-C ends it)"))
