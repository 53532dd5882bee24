"""How quickly `weightsearch serve` answers 8 clients, and what hostile uploads leave of it.

python benchmarks/serve.py [--queries 200] [--hostile 10000] [--minutes 60] [--out benchmarks/results/serve.json]

Hostile uploads end after so many minutes, and the result says how many there were. With `--hostile 0` there are none,
and what the result's file says of an earlier run's stays.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import pickle
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "index" / "examples").glob("*.pt"))
EXAMPLE = EXAMPLES[-1]
CLIENTS = 8
PORT = 8765


def variants(count: int) -> list[bytes]:
    """Files that no answer is kept of: the examples with noise of a thousandth on their weights."""
    import torch

    saved = [torch.load(path, weights_only=True) for path in EXAMPLES]
    generator, contents = torch.Generator().manual_seed(0), []
    for number in range(count):
        out = io.BytesIO()
        torch.save(_noisy(saved[number % len(saved)], generator), out)
        contents.append(out.getvalue())
    return contents


def _noisy(value: Any, generator: Any) -> Any:
    if isinstance(value, dict):
        return {key: _noisy(inner, generator) for key, inner in value.items()}
    if hasattr(value, "is_floating_point") and value.is_floating_point():
        return value * (1 + 1e-3 * value.new_empty(value.shape).normal_(generator=generator))
    return value


class Code:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch weightsearch-ran-code",)


def post(content: bytes, name: str = "model.pt") -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}/api/query?name={name}", content, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def hostile(number: int) -> tuple[bytes, str]:
    """Cut, of bits turned over, of another format, of code, of a header that promises too much, with HTML as a name."""
    draw, whole = random.Random(number), EXAMPLE.read_bytes()
    kinds = (
        lambda: whole[: draw.randrange(len(whole))],
        lambda: bytes(byte ^ (draw.random() < 0.01) for byte in whole),
        lambda: pickle.dumps(Code()),
        lambda: (2**62).to_bytes(8, "little") + b"{" * 100,
        lambda: draw.randbytes(draw.randrange(1, 5000)),
    )
    endings = (".pt", ".safetensors", ".npz", ".ckpt")
    return kinds[number % len(kinds)](), f"%3Cscript%3E{draw.choice(endings)}"


def endless() -> int:
    """A body of no declared length that never ends: the status that ends it."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=120)
    with contextlib.suppress(OSError):  # the server has answered and closed
        connection.request("POST", "/api/query", iter(lambda: b"0" * 65_536, b""), encode_chunked=True)
    try:
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def slow() -> int:
    """A byte a second: the status that ends it."""
    with socket.create_connection(("127.0.0.1", PORT), timeout=5) as connection:
        connection.sendall(b"POST /api/query HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5000\r\n\r\n")
        for _ in range(180):
            try:
                connection.sendall(b"0")
                connection.settimeout(1.0)
                if said := connection.recv(4096):
                    return int(said.split()[1])
                return 0
            except TimeoutError:
                continue
            except OSError:
                return 0
    return 0


def memory(process: psutil.Process) -> float:
    """MiB of the server and all that it started, what they share counted once."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_full_info().pss
        except psutil.Error:
            continue
    return total / 2**20


def processor_seconds(process: psutil.Process) -> tuple[float, float]:
    """What the server has taken itself, and what all that it started have."""
    times, started = process.cpu_times(), 0.0
    for one in process.children(recursive=True):
        taken = one.cpu_times()
        started += taken.user + taken.system + taken.children_user + taken.children_system
    return times.user + times.system, started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--hostile", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "serve.json")
    options = parser.parse_args()
    command = [
        sys.executable,
        "-m",
        "weightsearch",
        "serve",
        str(ROOT / "index"),
        "--port",
        str(PORT),
        "--largest",
        "16",
    ]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        contents, slowly = variants(options.queries), []
        for _ in range(3_000):  # ten minutes, on a machine that does other things
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}/healthz", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        for content in variants(40):  # until what is asked of the database is kept
            post(content)
        time.sleep(3)
        for content in variants(40):
            post(content)
        process, peak, done = psutil.Process(server.pid), [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(1.0):
                peak[0] = max(peak[0], memory(process))

        watcher = threading.Thread(target=watch)
        watcher.start()

        def timed(number: int) -> float:
            started = time.perf_counter()
            assert post(contents[number % len(contents)]) == 200
            return time.perf_counter() - started

        with ThreadPoolExecutor(CLIENTS) as clients:
            taken, taken_here = processor_seconds(process), time.process_time()
            load, started = os.getloadavg()[0], time.monotonic()
            seconds = list(clients.map(timed, range(options.queries)))
            whole = time.monotonic() - started
            taken_after, here = processor_seconds(process), time.process_time() - taken_here
            before, children, descriptors = memory(process), len(process.children(recursive=True)), process.num_fds()
            started = time.monotonic()
            ends = started + 60 * options.minutes

            def attacked(number: int) -> int | None:
                if time.monotonic() > ends:
                    return None
                return endless() if number % 200 == 199 else post(*hostile(number))

            waits = CLIENTS if options.hostile else 0
            waiting = [threading.Thread(target=lambda: slowly.append(slow())) for _ in range(waits)]
            for one in waiting:
                one.start()
            statuses = [one for one in clients.map(attacked, range(options.hostile)) if one is not None]
            for one in waiting:
                one.join()
        minutes = (time.monotonic() - started) / 60
        alive = post(content) == 200
        time.sleep(10)  # connections that are kept alive end after five seconds
        after = memory(process)
        children_left = len(process.children(recursive=True)) - children
        descriptors_left = process.num_fds() - descriptors
        done.set()
        watcher.join()
    finally:
        server.terminate()
        server.wait()
    result = json.loads(options.out.read_text()) if options.out.exists() else {}
    result["questions"] = {
        "count": options.queries, "clients": CLIENTS, "p50_seconds": float(np.quantile(seconds, 0.5)),
        "p99_seconds": float(np.quantile(seconds, 0.99)), "each_second": options.queries / whole,
        "server_processor_ms": 1e3 * (taken_after[0] - taken[0]) / options.queries,
        "readers_processor_ms": 1e3 * (taken_after[1] - taken[1]) / options.queries,
        "clients_processor_ms": 1e3 * here / options.queries, "load_average_before": load, "cores": os.cpu_count(),
    }  # fmt: skip
    if options.hostile:
        result["hostile"] = {
            "uploads": len(statuses), "slow_statuses": slowly, "minutes": minutes,
            "statuses": {str(status): statuses.count(status) for status in sorted(set(statuses))},
            "alive_after": alive, "code_ran": Path("weightsearch-ran-code").exists(), "peak_mib": peak[0],
            "mib_before": before, "mib_after": after, "children_left": children_left,
            "descriptors_left": descriptors_left,
            "files_left": len(list(Path(tempfile.gettempdir()).glob("weightsearch-upload-*"))),
        }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
