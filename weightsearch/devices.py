"""How fits and embeddings use the processor: threads, kinds of products, and memory that is used again."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from weightsearch.errors import UsageError

FIT_DEVICES = ("cpu", "cuda")  # that encoders are fitted on
TRAINING_DEVICES = ("cpu", "cuda", "mps", "xpu")  # that networks of a zoo are trained on
SMALL = 20_000  # weights; fits on smaller networks take one thread, since more would wait for one another, and float32
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)
REUSED_BYTES = 1 << 28  # larger blocks go back to the system when freed


def check_device(device: str, kinds: tuple[str, ...] = FIT_DEVICES) -> str:
    """The device as torch names it, such as `cpu` or `cuda:1`, if it is of one of `kinds` and there.

    Raises:
        UsageError: it is not.
    """
    kind, _, number = device.partition(":")
    if kind not in kinds or (":" in device and (kind == "cpu" or not number.isdecimal())):
        raise UsageError(f"--device {device}: choose {', '.join(kinds)}, or cuda:1 for the second graphics card")
    if kind == "cuda" and int(number or 0) >= (cards := torch.cuda.device_count()):
        raise UsageError(
            f"--device {device}: this PyTorch finds {cards} graphics cards; choose cpu, or install one made for CUDA"
        )
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # which of the two depends on how torch was built
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {device} cannot be used ({reason}): use --device cpu") from None
    return device


_lock = threading.Lock()
_working = 0  # threads that are inside of `fast_processor`
_settings = ExitStack()


@contextmanager
def fast_processor(weights: int, networks: int = 2) -> Iterator[None]:
    """For work on `networks` of that many weights: the settings below, and as they were again afterwards.

    For a single network memory is not used again, since giving it back takes as long as its embedding.

    They are the process's. Of several threads the first one makes them and the last one undoes them, so that none
    changes how another one computes; a thread that ends before others keeps its number of threads.
    """
    global _working
    with _lock:
        if not _working:
            _settings.enter_context(_few_threads(weights))
            _settings.enter_context(_fast_products())
            if networks > 1:
                _settings.enter_context(_reused_memory())
        _working += 1
    try:
        yield
    finally:
        with _lock:
            _working -= 1
            if not _working:
                _settings.close()


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products in bfloat16, twice as fast as in float32."""
    return any(_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _capabilities() -> Mapping[str, Any]:
    """What the processor can; nothing in older versions of PyTorch."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}


@contextmanager
def _few_threads(weights: int) -> Iterator[None]:
    """One thread for small networks: their steps are so short that a second thread costs more than it helps.

    On a machine that is busy otherwise, it costs tenfold.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if weights < SMALL else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _fast_products() -> Iterator[None]:
    """Products of float32 matrices by oneDNN, twice as fast as by MKL on AMD's processors with AVX-512.

    PyTorch takes oneDNN where it may round to bfloat16 inside. Without AMX, oneDNN does not: its products are as
    exact as MKL's. With AMX it would, so there all stays as it is.
    https://docs.pytorch.org/docs/stable/notes/mkldnn.html
    """
    capabilities = _capabilities()
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    if not capabilities.get("avx512_f") or capabilities.get("amx_tile") or capabilities.get("amx_bf16"):
        yield
        return
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


@contextmanager
def _reused_memory() -> Iterator[None]:
    """Freed memory stays with the process: large gradients, new in every step, would be zeroed pages each time.

    It takes about half of the time off a step of `fc` on 75,146 weights (see benchmarks/fit_throughput.py). Only
    where the C library is glibc.
    """
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):
        yield
        return
    libc.mallopt(M_MMAP_THRESHOLD, REUSED_BYTES)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:  # where glibc's own adjusting ends for programs with large blocks
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)
        libc.malloc_trim(0)
