"""Tasks on a Ray cluster, which run again where a worker or a node is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from weightsearch.errors import UsageError, WeightsearchError

LOCAL = "local"  # the address that starts a cluster on this machine, for as long as the command runs
IN_FLIGHT_PER_CPU = 2  # tasks handed to Ray: one runs, one waits; the others' arguments stay here
STARTS = 3  # of a local cluster, for which Ray waits half a minute
OBJECT_STORE_BYTES = 128 * 2**20  # of a local cluster; what does not fit goes to the disk
ATTEMPTS = 20  # of a task whose worker or node is lost each time

Item = TypeVar("Item")
_Start = tuple[Callable[..., object] | None, tuple[Any, ...]]  # an initializer and its arguments


class Cluster(Executor):
    """An executor of `concurrent.futures` whose processes are a Ray cluster's: see `cluster`."""

    def __init__(self, ray: Any, initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
        self._ray = ray
        self._started_by: _Start = (initializer, initargs)
        self._remote = ray.remote(num_cpus=1, max_retries=ATTEMPTS)(_run)
        self.workers = max(1, int(ray.cluster_resources().get("CPU", 1)))  # tasks that run at a time

    def share(self, value: Any) -> Any:
        """Sends a value to the cluster once; what is returned stands for it among the arguments of `submit`."""
        return self._ray.put(value)

    def submit(self, task: Callable[..., Any], /, *arguments: Any, **_: Any) -> Future[Any]:
        """Runs `task(*arguments)`, possibly several times, so that it has to end up the same; see `cluster`."""
        result: Future[Any] = Future()

        def ended(reference: Future[Any]) -> None:
            error = reference.exception()
            if error is None:
                result.set_result(reference.result())
            else:
                result.set_exception(_named(self._ray, error))

        remote = self._remote.options(name=getattr(task, "__name__", "task"))  # for Ray's own lists of what runs
        remote.remote(self._started_by, task, *arguments).future().add_done_callback(ended)
        return result


@contextmanager
def cluster(
    address: str,
    *,
    cpus: int | None = None,
    initializer: Callable[..., object] | None = None,
    initargs: tuple[Any, ...] = (),
) -> Iterator[Cluster]:
    """A Ray cluster as an executor, for as long as the block lasts; what runs then is ended.

    Args:
        address: `auto` for the cluster that this machine belongs to, `ray://HOST:10001` or `HOST:6379` for another one,
            `local` for one of this machine's processors.
        cpus: of a local cluster; by default as many as this machine has.
        initializer: called with `initargs` once in each process, before its first task.

    Raises:
        UsageError: Ray is not installed.
        WeightsearchError: the cluster cannot be reached. Futures raise it where a task's worker was lost too often;
            what a task itself raises is not tried again.
    """
    try:
        import ray
    except ImportError:
        raise UsageError("--ray needs Ray: pip install 'weightsearch[ray]'") from None
    started = not ray.is_initialized()
    if started:
        connect(ray, address, cpus)
    try:
        yield Cluster(ray, initializer, initargs)
    finally:
        if started:
            ray.shutdown()


def in_order_of_ending(
    executor: Cluster, task: Callable[..., Any], items: Sequence[Item], *shared: Any
) -> Iterator[tuple[Item, Any]]:
    """Yields each of `items` with the result of `task(item, *shared)`; `shared` goes to the cluster once.

    Two tasks a processor are in flight, so that no queue grows.
    """
    kept = [executor.share(value) for value in shared]
    waiting = list(reversed(items))
    running: dict[Future[Any], Item] = {}
    while waiting or running:
        while waiting and len(running) < IN_FLIGHT_PER_CPU * executor.workers:
            item = waiting.pop()
            running[executor.submit(task, item, *kept)] = item
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()


def check_options(ray: str | None, workers: int | None, device: str) -> None:
    """Raises UsageError for options of local work beside `--ray`."""
    if ray is not None and workers is not None:
        raise UsageError("--workers does not go with --ray: the cluster has its own, as many as processors")
    if ray is not None and device != "cpu":
        raise UsageError(f"--device {device} does not go with --ray, whose tasks run on processors")


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


_initialized: list[object] = []  # the initializers that this process has called


def _run(started_by: _Start, task: Callable[..., Any], *arguments: Any) -> Any:
    """What a worker's process does."""
    initializer, initargs = started_by
    if initializer is not None and initializer not in _initialized:
        initializer(*initargs)
        _initialized.append(initializer)
    return task(*arguments)


def _named(ray: Any, error: BaseException) -> BaseException:
    """A task's end as an error that says what it was."""
    if isinstance(error, ray.exceptions.RayTaskError):
        cause = error.cause
        if isinstance(cause, (WeightsearchError, OSError)):
            return cause
        return WeightsearchError(f"a task on Ray failed: {type(cause).__name__}: {cause}")
    reason = str(error).strip().splitlines()[0]
    return WeightsearchError(f"a task on Ray was lost {ATTEMPTS} times ({reason}); run the command again")
