"""Work done before its result is asked for."""

import weakref
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Ahead(Generic[Item, Result]):
    """An iterator over each item with `work(item)`, in the items' order.

    Args:
        work: called in threads, `workers` at a time; an error in it is raised where its result is due.
        items: read in the caller's thread.
        depth: how many items are started before their results are asked for.
        workers: 0: everything is done in the caller's thread when it is asked for.
    """

    def __init__(self, work: Callable[[Item], Result], items: Iterable[Item], *, depth: int, workers: int) -> None:
        self._work = work
        self._items = iter(items)
        self._depth = depth
        self._pending: deque[tuple[Item, Future[Result]]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        if workers and depth:
            self._pool = ThreadPoolExecutor(workers, thread_name_prefix="tp2d-data")
            # A finalizer, because `finally` in a generator runs too late for an iterator that is still alive when the
            # interpreter ends: the modules that the pool needs are gone by then. A finalizer runs at exit before that.
            weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[Item, Result]:
        try:
            if self._pool is None:
                item = next(self._items)
                return item, self._work(item)
            for item in self._items:
                self._pending.append((item, self._pool.submit(self._work, item)))
                if len(self._pending) > self._depth:
                    break
            if not self._pending:
                raise StopIteration
            item, future = self._pending.popleft()
            return item, future.result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the iteration; work that has not started is left undone."""
        self._items = iter(())
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
