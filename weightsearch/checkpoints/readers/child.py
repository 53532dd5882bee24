"""What runs in the process apart that `readers.guard` starts: reads one file after another, each within its limits."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from weightsearch.checkpoints.pickle_scanner import shown
from weightsearch.checkpoints.readers import guard
from weightsearch.errors import WeightsearchError

# Each reader's library, which is loaded before there are limits, and the module and function that use it.
READERS: dict[str, tuple[str, str, str]] = {
    "hdf5": ("h5py", "readers.keras_files", "read_h5"),
    "keras": ("h5py", "readers.keras_files", "read_keras_file"),
    "onnx": ("onnx.numpy_helper", "readers.onnx_files", "read_onnx"),
    "gguf": ("gguf", "readers.other_files", "read_gguf"),
    "tflite": ("tflite", "readers.other_files", "read_tflite"),
    "flax": ("msgpack", "readers.other_files", "read_flax"),
    "events": ("tensorboard.backend.event_processing.event_file_loader", "trackers.tensorboard", "read_scalars"),
    "table": ("duckdb", "metadata_table", "query_table"),
}


def read(reader: str, path: Path, *arguments: str) -> Any:
    """Whatever the parsers raise comes through."""
    return _function(reader)(path, *arguments)


def _function(reader: str) -> Callable[..., Any]:
    library, module, function = READERS[reader]
    with suppress(ImportError):  # the reader says what to install
        import_module(library)
    return getattr(import_module(f"weightsearch.checkpoints.{module}"), function)


def serve() -> None:
    """Answers the requests on standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started this
    sys.dont_write_bytecode = True
    answers = os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("wb") as nowhere:  # libraries print
        os.dup2(nowhere.fileno(), 1)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        buffers: list[memoryview] = []
        try:
            function = _function(request["reader"])
            guard.limit_process(request["memory_bytes"], request["seconds"])
            head, buffers = guard.pack(function(Path(request["path"]), *request["arguments"]))
        except WeightsearchError as error:
            head = {"error": str(error)}
        except MemoryError:
            most = request["memory_bytes"] // 2**20
            head = {"error": f"it takes over {most:,} MiB of memory; copy it again, or save it in another format"}
        except Exception as error:  # parsers fail in too many ways to list them
            reason = shown(next(iter(str(error).splitlines()), ""))[:200] or "no reason given"
            head = {"error": f"damaged ({type(error).__name__}: {reason}); copy or save it again"}
        guard.send(answers, head, buffers)
