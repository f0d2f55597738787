"""Batches from concurrent callers: one bounded queue, one size limit, one delay.

A batch leaves when it is full or when its oldest item has waited for the delay. Several workers form
batches from the same queue, so that a slow batch holds up nobody behind it. Items that fail in a
batch are run again one by one: only the poisoned one fails.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from wetread.errors import BusyError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True)
class _Item(Generic[T, R]):
    value: T
    future: Future[R]
    at: float = field(default_factory=time.monotonic)


class Batcher(Generic[T, R]):
    """Run items in batches; `submit` gives a future.

    Parameters
    ----------
    run : callable
        Takes 1 to `size` items and returns one result per item, in order. Called from several threads.
    size : int
        Most items in one batch.
    delay_s : float
        Longest wait of an item for its batch to fill, in s.
    limit : int
        Most items waiting; more are refused with `BusyError`.
    workers : int
        Batches that may run at once.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Sequence[R]],
        *,
        size: int = 8,
        delay_s: float = 0.005,
        limit: int = 64,
        workers: int = 2,
    ) -> None:
        self._run, self._size, self._delay, self._limit = run, size, delay_s, limit
        self._queue: deque[_Item[T, R]] = deque()
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._drained = threading.Condition(self._lock)
        self._closed = False
        self._workers = [
            threading.Thread(target=self._work, name=f"batcher-{index}", daemon=True) for index in range(workers)
        ]
        for worker in self._workers:
            worker.start()

    def submit(self, value: T, wait_s: float = 0.0) -> Future[R]:
        """Queue an item.

        Parameters
        ----------
        value
        wait_s : float
            How long to wait for room in a full queue, in s.

        Raises
        ------
        BusyError
            When the queue stays full that long, or the batcher is closed.
        """
        with self._lock:
            if not self._drained.wait_for(lambda: self._closed or len(self._queue) < self._limit, wait_s):
                raise BusyError(f"{self._limit} images are waiting for inference already; try again later")
            if self._closed:
                raise BusyError("inference is shutting down; try again later")
            item: _Item[T, R] = _Item(value, Future())
            self._queue.append(item)
            self._filled.notify()
            return item.future

    @property
    def waiting(self) -> int:
        """Items in the queue, those that run not included."""
        return len(self._queue)

    def close(self, *, finish: bool = True) -> None:
        """Stop; items still queued are run (`finish`) or fail with `BusyError`. Returns when nothing runs."""
        with self._lock:
            self._closed = True
            abandoned = [] if finish else list(self._queue)
            if not finish:
                self._queue.clear()
            self._filled.notify_all()
            self._drained.notify_all()
        for item in abandoned:
            if item.future.set_running_or_notify_cancel():
                item.future.set_exception(BusyError("inference is shutting down; try again later"))
        for worker in self._workers:
            worker.join()

    def __enter__(self) -> Batcher[T, R]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while batch := self._take():
            # A caller that gave up costs nothing; from here on it cannot cancel.
            if wanted := [item for item in batch if item.future.set_running_or_notify_cancel()]:
                self._answer(wanted)

    def _take(self) -> list[_Item[T, R]]:
        """Return the next batch, or none when closed and empty."""
        with self._lock:
            while True:
                self._filled.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return []
                remaining = self._queue[0].at + self._delay - time.monotonic()
                if len(self._queue) >= self._size or remaining <= 0 or self._closed:
                    break
                self._filled.wait(remaining)
            batch = [self._queue.popleft() for _ in range(min(self._size, len(self._queue)))]
            self._drained.notify(len(batch))
            if self._queue:  # what is left may be due already, and the worker that was told of it is this one
                self._filled.notify()
            return batch

    def _answer(self, batch: list[_Item[T, R]]) -> None:
        try:
            results = self._run([item.value for item in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} items")
        except BaseException as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            for item in batch:
                self._answer([item])
            return
        for item, result in zip(batch, results, strict=True):
            item.future.set_result(result)
