"""torch's optimizers without its compiler, whose import takes longer than many a fit: half as long again as torch's."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
from torch.optim import Optimizer


@functools.cache
def eager(kind: type[Optimizer]) -> Callable[..., Optimizer]:
    """The optimizer of torch.optim with methods that do not import `torch._dynamo`; the numbers are the same.

    torch wraps these methods so that `torch.compile` leaves them alone, and imports the compiler to say so at the first
    call. Nothing is compiled here.

    Example:
        >>> eager(torch.optim.SGD)([torch.zeros(3, requires_grad=True)], lr=0.1).__class__.__name__
        'SGD'
    """
    wrapped = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in wrapped}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(inspect.unwrap(kind.step))})
