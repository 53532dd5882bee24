"""torch's optimizers without its compiler: the same steps, and the compiler is not imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from weightsearch.optimizers import eager

pytestmark = pytest.mark.slow  # torch's own optimizers import the compiler

SETTINGS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "fused": True},
    "Adam": {"lr": 0.01, "weight_decay": 0.1, "fused": True},
    "AdamW": {"lr": 0.01, "weight_decay": 0.1, "fused": True},
    "Adamax": {"lr": 0.01, "weight_decay": 0.1},
    "NAdam": {"lr": 0.01, "weight_decay": 0.1},
    "RAdam": {"lr": 0.01, "weight_decay": 0.1},
    "RMSprop": {"lr": 0.01, "foreach": True},
}
STEPS = """
import json, sys
import torch
from weightsearch.optimizers import eager

for name, settings in json.loads(sys.argv[1]).items():
    parameter = torch.ones(3, requires_grad=True)
    optimizer = eager(getattr(torch.optim, name))([parameter], **settings)
    for _ in range(2):
        optimizer.zero_grad()
        parameter.square().sum().backward()
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    assert (parameter < 1).all(), name
    assert "torch._dynamo" not in sys.modules, name
"""


def stepped(kind: Callable[..., torch.optim.Optimizer], settings: dict) -> torch.Tensor:
    """Eight steps towards a point, the last four by an optimizer that goes on from the first one's state."""
    generator = torch.Generator().manual_seed(5)
    goal = torch.randn(40, generator=generator)
    parameter = torch.randn(40, generator=generator).requires_grad_()
    optimizer = kind([parameter], **settings)
    for step in range(8):
        if step == 4:
            state, optimizer = optimizer.state_dict(), kind([parameter], **settings)
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        (parameter - goal).square().sum().backward()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_are_those_of_torchs_own_optimizer(name: str):
    kind = getattr(torch.optim, name)
    own = stepped(kind, SETTINGS[name])
    assert torch.equal(stepped(eager(kind), SETTINGS[name]), own)
    assert not torch.equal(stepped(eager(kind), SETTINGS[name] | {"lr": 0.02}), own)


def test_the_compiler_is_not_imported():
    done = subprocess.run([sys.executable, "-c", STEPS, json.dumps(SETTINGS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
