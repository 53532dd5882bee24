"""A stranger's file is read in a process of its own, with limits of memory and time.

What comes back is JSON and numbers, never pickled objects. A fork server that has loaded the readers already makes a
process a matter of milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from weightsearch.errors import WeightsearchError
from weightsearch.server.options import ServeOptions
from weightsearch.types import Architecture, Checkpoint

PRELOADED = [  # this module with its package, too: else each process spends on that five times what reading takes
    *("weightsearch.server.reading", "weightsearch.checkpoints.state_dict", "weightsearch.checkpoints.readers.guard"),
    *("weightsearch.relations", "safetensors.numpy", "resource"),
]
NAME = "uploaded file"


def context() -> Any:
    """Where processes come from: a fork server with the readers loaded, or new ones where there is none."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(PRELOADED)
    return processes


def read_apart(
    path: Path, options: ServeOptions, processes: Any, signatures: Path | None = None
) -> tuple[Checkpoint, dict[str, Any] | None]:
    """The checkpoint in the file, and what it is to those that the index at `signatures` has signatures of.

    Raises WeightsearchError for what is none, too large, or takes too long; relations that do are None.
    """
    ours, theirs = processes.Pipe(duplex=False)
    process = processes.Process(
        target=_read, args=(theirs, str(path), options.largest_memory, options.read_seconds, signatures), daemon=True
    )
    ends = time.monotonic() + options.read_seconds
    process.start()
    theirs.close()
    relations = None
    try:
        if not ours.poll(max(0.0, ends - time.monotonic())) or time.monotonic() > ends:
            raise WeightsearchError(f"reading it took more than {options.read_seconds:g} seconds")
        head = json.loads(ours.recv_bytes())
        if "error" in head:
            raise WeightsearchError(head["error"])
        weights = np.frombuffer(ours.recv_bytes(), "<f4").copy()
        with contextlib.suppress(EOFError, OSError):
            if signatures is not None and ours.poll(max(0.0, ends - time.monotonic())):
                relations = json.loads(ours.recv_bytes())
    except (EOFError, OSError):
        raise WeightsearchError("reading it took more memory or time than is allowed") from None
    finally:
        ours.close()
        process.kill()
        process.join()
        process.close()
    checkpoint = Checkpoint(
        NAME, Architecture.from_dict(head["architecture"]), weights, head["metadata"], tuple(head["skipped"]),
        tuple(head["notes"]), head["ordered"],
    )  # fmt: skip
    return checkpoint, relations


def _read(answer: Connection, path: str, largest_memory: int, seconds: float, signatures: Path | None) -> None:
    """In the child: limits first, then the file."""
    from weightsearch.checkpoints.readers.guard import limit_process
    from weightsearch.checkpoints.state_dict import read_checkpoint
    from weightsearch.files import plain

    limit_process(largest_memory, seconds)
    try:
        checkpoint = read_checkpoint(path)
    except WeightsearchError as error:
        answer.send_bytes(json.dumps({"error": str(error).replace(path, NAME)}).encode())
    except MemoryError:
        answer.send_bytes(json.dumps({"error": "it takes more memory than is allowed"}).encode())
    except Exception as error:
        answer.send_bytes(json.dumps({"error": f"it cannot be read ({type(error).__name__})"}).encode())
    else:
        head = {
            "architecture": checkpoint.architecture.to_dict(), "metadata": plain(checkpoint.metadata),
            "skipped": checkpoint.skipped, "notes": [note.replace(path, NAME) for note in checkpoint.notes],
            "ordered": checkpoint.ordered,
        }  # fmt: skip
        answer.send_bytes(json.dumps(head, default=str).encode())
        answer.send_bytes(np.ascontiguousarray(checkpoint.weights, "<f4").tobytes())
        if signatures is not None:
            answer.send_bytes(json.dumps(_relations(path, signatures)).replace(path, NAME).encode())
    answer.close()


def _relations(path: str, signatures: Path) -> dict[str, Any] | None:
    from weightsearch.relations import SignatureIndex

    try:
        return SignatureIndex(signatures).relatives(path).to_dict()
    except Exception:  # a file that has an answer keeps it
        return None
