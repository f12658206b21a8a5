"""Work done before its result is asked for."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], *, depth: int, workers: int
) -> Generator[tuple[Item, Result]]:
    """Each item with `work(item)`, in the items' order.

    Args:
        work: called in threads, `workers` at a time; what it raises is raised where its result is due.
        items: read in the caller's thread.
        depth: how many items are begun before their results are asked for.
        workers: 0: everything is done in the caller's thread when it is asked for.
    """
    if not workers or not depth:
        yield from ((item, work(item)) for item in items)
        return
    pending: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="tp2d-data")
    try:
        for item in items:
            pending.append((item, pool.submit(work, item)))
            if len(pending) > depth:
                first, future = pending.popleft()
                yield first, future.result()
        for first, future in pending:
            yield first, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
