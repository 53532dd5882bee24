"""Settings of the processor: they change speed alone, and are as before afterwards."""

from __future__ import annotations

import platform
import resource
import threading
from pathlib import Path

import pytest
import torch

from weightsearch.devices import SMALL, fast_processor


def test_products_stay_exact_and_settings_come_back():
    before = torch.backends.mkldnn.matmul.fp32_precision, torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(200, 300, generator=generator), torch.randn(300, 100, generator=generator)
    expected = left.double() @ right.double()
    with fast_processor(SMALL - 1):
        assert torch.get_num_threads() == 1
        difference = (left @ right - expected).abs().max() / expected.abs().max()
    assert difference < 2e-6  # in bfloat16 it would be 2e-3
    assert (torch.backends.mkldnn.matmul.fp32_precision, torch.get_num_threads()) == before


def faults() -> int:
    """Pages that the system had to give anew for making and dropping a block of 64 MiB ten times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
@pytest.mark.slow
def test_large_blocks_are_used_again_and_given_back():
    fresh = faults()
    with fast_processor(SMALL):
        faults()  # until there is room for a block and its alignment
        again = faults()
        kept = resident_bytes()
    assert again < fresh / 10
    assert kept - resident_bytes() > 48 << 20  # of the 64 MiB


def test_the_first_of_two_threads_to_end_leaves_the_other_ones_settings():
    before = torch.get_num_threads()
    both, one_left = threading.Event(), threading.Event()
    seen = []

    def short_work():
        with fast_processor(SMALL - 1):
            both.wait(5)
        one_left.set()

    def long_work():
        with fast_processor(SMALL - 1):
            both.set()
            one_left.wait(5)
            seen.append((torch.get_num_threads(), torch.backends.mkldnn.matmul.fp32_precision))

    torch.set_num_threads(2)
    try:
        with fast_processor(SMALL - 1):
            inside = torch.get_num_threads(), torch.backends.mkldnn.matmul.fp32_precision
        threads = [threading.Thread(target=work) for work in (short_work, long_work)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        new = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        new.start()
        new.join()
        assert seen == [inside, 2]
    finally:
        torch.set_num_threads(before)
