"""Tiles by the workers of an executor: threads, processes, or those of another library."""

import multiprocessing
import pickle
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed

from ntk_jax.scale.grid import Corner
from ntk_jax.types import KernelFn


def check_executor(executor: Executor, kernel_fn: KernelFn) -> None:
    """Raise unless a kernel function can be given to the workers.

    Raises:
        ValueError: forked processes, or a function that cannot be sent to processes.
    """
    if not isinstance(executor, Executor):
        raise ValueError(f"executor: expected a concurrent.futures.Executor; got {executor!r}.")
    if not isinstance(executor, ProcessPoolExecutor):
        return
    context = getattr(executor, "_mp_context", None) or multiprocessing
    if context.get_start_method() == "fork":
        raise ValueError(
            "executor: expected processes that are spawned; got forked ones, in which JAX's "
            "threads are missing, and hangs. ProcessPoolExecutor(n, "
            "mp_context=multiprocessing.get_context('spawn'))."
        )
    try:
        pickle.dumps(kernel_fn)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            "kernel_fn: expected a function that can be sent to processes, one of a module or a "
            f"functools.partial of one; got {kernel_fn!r}: {error}. Or use a ThreadPoolExecutor."
        ) from error


def drive(
    executor: Executor,
    task: Callable[[Corner], Corner],
    which: list[Corner],
    advance: Callable[[int], object],
) -> None:
    """Run a task for every tile. After a failure no further one starts, and those that run end.

    Raises:
        RuntimeError: a worker died.
    """
    futures = [executor.submit(task, at) for at in which]
    done = 0
    try:
        for future in as_completed(futures):
            future.result()
            done += 1
            advance(1)
    except BrokenExecutor as error:
        raise RuntimeError(
            f"executor: a worker ended before its tile was done, after {done} of {len(which)}: "
            f"{error} Call again with a new executor: the missing tiles are computed."
        ) from error
    finally:
        running = [future for future in futures if not future.cancel()]
        for future in running:
            future.exception()
