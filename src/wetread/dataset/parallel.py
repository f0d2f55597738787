"""Batches of work over processes: results in order, memory bounded, and a crash costs one item, not the run."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Generic, Protocol, TypeVar

import cv2

from wetread.errors import DatasetError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Spread(Protocol):
    """A way to share work out: `in_order`, over processes of this machine, or the same over a cluster."""

    def __call__(
        self,
        batches: Iterable[list[Item]],
        work: Callable[[list[Item]], Result],
        rescue: Callable[[list[Item], Callable[[Item], Result | None]], Result],
        workers: int,
    ) -> Iterator[Result]:
        """Yield what `work` makes of each batch, in order."""
        ...


def in_order(
    batches: Iterable[list[Item]],
    work: Callable[[list[Item]], Result],
    rescue: Callable[[list[Item], Callable[[Item], Result | None]], Result],
    workers: int,
) -> Iterator[Result]:
    """Yield what `work` makes of each batch, in order, holding no more than two batches per worker.

    Parameters
    ----------
    batches : iterable of list
    work : callable
        Importable by name; its result is pickled. OpenCV has one thread while it runs.
    rescue : callable
        Called for a batch in whose time a worker died, with the batch and a function that works on one item in a
        process of its own and returns None when that dies too.
    workers : int
        1: no process of its own, and no rescue.

    Raises
    ------
    DatasetError
        When no worker can be started.
    """
    if workers == 1:
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            yield from map(work, batches)
        finally:
            cv2.setNumThreads(threads)
        return
    waiting: deque[tuple[list[Item], Future[Result]]] = deque()
    pool = _pool(workers)
    try:
        for batch in batches:
            waiting.append((batch, _submit(pool, work, batch)))
            if len(waiting) < 2 * workers:
                continue
            result, alive = _take(waiting, work, rescue)
            if not alive:
                pool.shutdown(cancel_futures=True)
                pool = _pool(workers)
                waiting = deque((late, _submit(pool, work, late)) for late, _ in waiting)
            yield result
        while waiting:
            yield _take(waiting, work, rescue)[0]
    finally:
        pool.shutdown(cancel_futures=True)


def _take(
    waiting: deque[tuple[list[Item], Future[Result]]],
    work: Callable[[list[Item]], Result],
    rescue: Callable[[list[Item], Callable[[Item], Result | None]], Result],
) -> tuple[Result, bool]:
    """Return the result of the batch that waited longest, and whether its pool still lives."""
    batch, future = waiting.popleft()
    try:
        return future.result(), True
    except BrokenProcessPool:
        with _Alone(work) as alone:
            return rescue(batch, alone), False


class _Alone(Generic[Item, Result]):
    """One item at a time in one process, which is replaced when it dies."""

    def __init__(self, work: Callable[[list[Item]], Result]) -> None:
        self._work = work
        self._pool = _pool(1)

    def __enter__(self) -> _Alone[Item, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def __call__(self, item: Item) -> Result | None:
        try:
            return self._pool.submit(self._work, [item]).result()
        except BrokenProcessPool:
            self._pool.shutdown()
            self._pool = _pool(1)
            return None


def _submit(pool: ProcessPoolExecutor, work: Callable[[list[Item]], Result], batch: list[Item]) -> Future[Result]:
    try:
        return pool.submit(work, batch)
    except BrokenProcessPool as error:  # died since the last batch: found out when this one's turn comes
        failed: Future[Result] = Future()
        failed.set_exception(error)
        return failed


def _pool(workers: int) -> ProcessPoolExecutor:
    # Not forked: Polars and OpenCV have threads, which a fork would leave behind with their locks held.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start)
    try:
        pool.submit(cv2.getNumThreads).result()
    except BrokenProcessPool:
        raise DatasetError(
            "workers cannot be started; call from a script with an `if __name__ == '__main__':` guard, or use 1 worker"
        ) from None
    return pool


def _start() -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave when the parent is killed: a worker holds both ends of its queue and would wait for ever."""
    if (parent := parent_process()) is not None:
        parent.join()
    os._exit(1)
