"""Tasks on a Ray cluster: a bounded number in flight, tried again where a worker or a node is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from weightsearch.errors import UsageError, WeightsearchError

LOCAL = "local"  # the address that starts a cluster on this machine, for as long as the command runs
IN_FLIGHT_PER_CPU = 2  # tasks handed to Ray: one runs, one waits; the others' arguments stay here
STARTS = 3  # of a local cluster, for which Ray waits half a minute
OBJECT_STORE_BYTES = 128 * 2**20  # of a local cluster: results are small, what is read goes to parts
ATTEMPTS = 20  # of a task whose worker or node is lost each time

Item = TypeVar("Item")


def on_ray(
    address: str, task: Callable[..., Any], items: Sequence[Item], shared: tuple[Any, ...], cpus: int | None = None
) -> Iterator[tuple[Item, Any]]:
    """Yields each of `items` with the result of `task(item, *shared)`, in the order in which tasks end.

    A task may run again after its worker was lost: it has to end up the same. What the task itself raises ends all.

    Args:
        address: `auto` for the cluster that this machine belongs to, `ray://HOST:10001` or `HOST:6379` for another one,
            `local` for one of this machine's processors.
        shared: goes to the cluster once.
        cpus: of a local cluster; by default as many as this machine has.

    Raises:
        UsageError: Ray is not installed.
        WeightsearchError: the cluster cannot be reached, or lost a task's worker too often.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("--ray needs Ray: pip install 'weightsearch[ray]'") from None
    started = not ray.is_initialized()
    if started:
        connect(ray, address, cpus)
    try:
        remote = ray.remote(task).options(num_cpus=1, max_retries=ATTEMPTS)
        kept = tuple(ray.put(value) for value in shared)
        most = max(2, IN_FLIGHT_PER_CPU * int(ray.cluster_resources().get("CPU", 1)))
        waiting = list(reversed(items))
        running: dict[Any, Item] = {}
        while waiting or running:
            while waiting and len(running) < most:
                item = waiting.pop()
                running[remote.remote(item, *kept)] = item
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                yield running.pop(reference), _result(ray, reference)
    finally:
        if started:
            ray.shutdown()


def connect(ray: Any, address: str, cpus: int | None = None) -> None:
    """Joins a cluster, or starts one on this machine; `ray` is the library."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as Ray's next version will have it
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == LOCAL:  # which nobody else is to reach
        options |= {"num_cpus": cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        options |= {"object_store_memory": OBJECT_STORE_BYTES}
    for attempt in range(STARTS if address == LOCAL else 1):
        try:
            ray.init(address=address, **options)
            return
        except Exception as error:  # whatever of its many libraries complains; a busy machine is given more time
            ray.shutdown()
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            if attempt == STARTS - 1 or address != LOCAL:
                raise WeightsearchError(f"--ray {address}: no Ray cluster answers there ({reason})") from None


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, WeightsearchError):
            raise type(cause)(str(cause)) from None
        raise WeightsearchError(f"a task on Ray failed: {type(cause).__name__}: {cause}") from error
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsearchError(f"a task on Ray was lost {ATTEMPTS} times ({reason}); run the command again") from None
