"""Tensors compared as torch.testing does, whose first comparison imports torch.distributed and SymPy for a second."""

from __future__ import annotations

import numpy as np
import torch

TOLERANCES = {torch.float32: (1.3e-6, 1e-5), torch.float64: (1e-7, 1e-7)}  # relative and absolute, as torch's are


def assert_close(
    actual: torch.Tensor, expected: torch.Tensor, *, rtol: float | None = None, atol: float | None = None
) -> None:
    """Of the same device, type and shape, and everywhere within `atol + rtol * abs(expected)`; NaN equals nothing."""
    assert actual.device == expected.device
    relative, absolute = TOLERANCES[actual.dtype]
    np.testing.assert_allclose(
        actual.detach().numpy(),
        expected.detach().numpy(),
        relative if rtol is None else rtol,
        absolute if atol is None else atol,
        equal_nan=False,
        strict=True,
    )
