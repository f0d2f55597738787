"""The batcher: order, limits, isolation of failures, back-pressure, no head-of-line blocking, shutdown."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wetread.errors import BusyError, ModelError
from wetread.infer.batcher import Batcher

PATIENCE_S = 20  # only a hang takes this long


class Gate:
    """A runner that holds every batch until opened, and remembers them."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[int]] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.entered.release()
        assert self.open.wait(PATIENCE_S)
        return [-item for item in items]


@given(
    items=st.lists(st.integers(), max_size=40),
    size=st.integers(1, 9),
    workers=st.integers(1, 3),
    delay=st.sampled_from([0.0, 0.001]),
)
@settings(max_examples=40, deadline=None)
def test_every_item_gets_its_own_answer_in_batches_no_larger_than_the_limit(
    items: list[int], size: int, workers: int, delay: float
) -> None:
    batches = []

    def run(batch: Sequence[int]) -> list[int]:
        batches.append(list(batch))
        return [item * 3 for item in batch]

    with Batcher(run, size=size, delay_s=delay, limit=100, workers=workers) as batcher:
        futures = [batcher.submit(item) for item in items]
        assert [future.result(PATIENCE_S) for future in futures] == [item * 3 for item in items]
    assert all(1 <= len(batch) <= size for batch in batches)
    assert sorted(item for batch in batches for item in batch) == sorted(items)


@given(poison=st.sets(st.integers(0, 19)), size=st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_a_poisoned_item_fails_alone(poison: set[int], size: int) -> None:
    def run(batch: Sequence[int]) -> list[int]:
        if bad := [item for item in batch if item in poison]:
            raise ModelError(f"cannot do {bad}")
        return list(batch)

    with Batcher(run, size=size, delay_s=0.001, limit=100) as batcher:
        futures = [batcher.submit(item) for item in range(20)]
        for item, future in enumerate(futures):
            if item in poison:
                with pytest.raises(ModelError, match=rf"cannot do \[{item}\]"):
                    future.result(PATIENCE_S)
            else:
                assert future.result(PATIENCE_S) == item


def test_a_runner_that_loses_a_result_fails_instead_of_shifting_answers() -> None:
    with Batcher(lambda items: [item for item in items if item != 2], size=3, delay_s=5) as batcher:
        futures = [batcher.submit(item) for item in (1, 2, 3)]
        assert [futures[0].result(PATIENCE_S), futures[2].result(PATIENCE_S)] == [1, 3]
        with pytest.raises(RuntimeError, match="0 results for 1 items"):
            futures[1].result(PATIENCE_S)


def test_a_full_queue_refuses_and_recovers() -> None:
    gate = Gate()
    with Batcher(gate, size=1, delay_s=0, limit=2, workers=1) as batcher:
        running = batcher.submit(0)
        assert gate.entered.acquire(timeout=PATIENCE_S)
        waiting = [batcher.submit(1), batcher.submit(2)]
        assert batcher.waiting == 2
        with pytest.raises(BusyError, match="try again later"):
            batcher.submit(3)
        with pytest.raises(BusyError):
            batcher.submit(3, wait_s=0.01)
        with ThreadPoolExecutor(1) as pool:  # one who is ready to wait gets room as soon as there is some
            patient = pool.submit(lambda: batcher.submit(4, wait_s=PATIENCE_S))
            gate.open.set()
            assert patient.result(PATIENCE_S).result(PATIENCE_S) == -4
        assert [f.result(PATIENCE_S) for f in (running, *waiting)] == [0, -1, -2]
    assert [3] not in gate.batches


def test_a_stuck_batch_holds_up_nobody_behind_it() -> None:
    stuck = threading.Event()

    def run(items: Sequence[int]) -> list[int]:
        if 0 in items:
            assert stuck.wait(PATIENCE_S)
        return list(items)

    with Batcher(run, size=1, delay_s=0, limit=100, workers=2) as batcher:
        first = batcher.submit(0)
        later = [batcher.submit(item) for item in range(1, 30)]
        assert [future.result(PATIENCE_S) for future in later] == list(range(1, 30))
        assert not first.done()
        stuck.set()
        assert first.result(PATIENCE_S) == 0


def test_a_full_batch_leaves_before_the_delay_and_a_lone_item_after_it() -> None:
    seen: list[int] = []

    def run(items: Sequence[int]) -> list[int]:
        seen.append(len(items))
        return list(items)

    with Batcher(run, size=4, delay_s=PATIENCE_S * 10, limit=100, workers=2) as batcher:
        futures = [batcher.submit(item) for item in range(4)]
        assert [future.result(PATIENCE_S) for future in futures] == [0, 1, 2, 3]
    assert seen == [4]
    with Batcher(run, size=4, delay_s=0.01, limit=100) as batcher:
        begun = time.monotonic()
        assert batcher.submit(7).result(PATIENCE_S) == 7
        assert time.monotonic() - begun >= 0.01


def test_a_caller_that_gave_up_is_not_run() -> None:
    gate = Gate()
    with Batcher(gate, size=1, delay_s=0, limit=9, workers=1) as batcher:
        batcher.submit(1)
        assert gate.entered.acquire(timeout=PATIENCE_S)
        gone = batcher.submit(2)
        assert gone.cancel()
        gate.open.set()
        assert batcher.submit(3).result(PATIENCE_S) == -3
        with pytest.raises(CancelledError):
            gone.result(0)
    assert gate.batches == [[1], [3]]


@pytest.mark.parametrize("finish", [True, False])
def test_closing_leaves_no_future_and_no_thread_behind(finish: bool) -> None:
    before = threading.active_count()
    gate = Gate()
    batcher = Batcher(gate, size=1, delay_s=0, limit=9, workers=1)
    running = batcher.submit(1)
    assert gate.entered.acquire(timeout=PATIENCE_S)
    queued = [batcher.submit(2), batcher.submit(3)]
    closer = threading.Thread(target=batcher.close, kwargs={"finish": finish})
    closer.start()
    while not batcher._closed:
        time.sleep(0.001)
    gate.open.set()
    closer.join(PATIENCE_S)
    assert running.result(0) == -1
    if finish:
        assert [future.result(0) for future in queued] == [-2, -3]
    else:
        for future in queued:
            with pytest.raises(BusyError, match="shutting down"):
                future.result(0)
    with pytest.raises(BusyError, match="shutting down"):
        batcher.submit(4)
    batcher.close()
    assert threading.active_count() == before


def test_closing_wakes_a_caller_that_waits_for_room() -> None:
    gate = Gate()
    batcher = Batcher(gate, size=1, delay_s=0, limit=1, workers=1)
    batcher.submit(1)
    assert gate.entered.acquire(timeout=PATIENCE_S)
    batcher.submit(2)
    with ThreadPoolExecutor(2) as pool:
        patient = pool.submit(batcher.submit, 3, PATIENCE_S)
        closing = pool.submit(batcher.close)
        with pytest.raises(BusyError):
            patient.result(PATIENCE_S)
        gate.open.set()
        closing.result(PATIENCE_S)


def test_many_threads_many_failures_nothing_lost() -> None:
    def run(items: Sequence[int]) -> list[int]:
        if any(item % 17 == 0 for item in items):
            raise ValueError("17")
        return [item + 1 for item in items]

    def client(start: int) -> list[Future[int]]:
        return [batcher.submit(item, wait_s=PATIENCE_S) for item in range(start, start + 200)]

    with Batcher(run, size=8, delay_s=0.0005, limit=16, workers=3) as batcher, ThreadPoolExecutor(8) as pool:
        starts = [1000 * n for n in range(8)]
        for start, futures in zip(starts, pool.map(client, starts), strict=True):
            for item, future in enumerate(futures, start):
                if item % 17 == 0:
                    assert isinstance(future.exception(PATIENCE_S), ValueError)
                else:
                    assert future.result(PATIENCE_S) == item + 1
