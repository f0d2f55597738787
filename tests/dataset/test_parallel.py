"""Work over processes: in order, bounded, and a crash costs one item."""

import importlib
import sys
import types

import cv2
import pytest

from wetread.dataset.parallel import in_order
from wetread.errors import DatasetError

WORK = """
import os
import cv2

def double(batch):
    return [2 * item for item in batch], cv2.getNumThreads(), os.getpid()

def deadly(batch):
    if 13 in batch:
        os._exit(9)  # what a decoder that crashes looks like from outside
    return [2 * item for item in batch], 1, os.getpid()
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A module that other processes can import too."""
    (tmp_path / "wetread_test_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("wetread_test_work")
    sys.modules.pop("wetread_test_work")


def rescue(batch, alone):
    results = [alone(item) for item in batch]
    return [None if result is None else result[0][0] for result in results], 1, 0


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_from_one_thread_each(work, workers):
    before = cv2.getNumThreads()
    batches = [[i, i + 100] for i in range(12)]
    results = list(in_order(iter(batches), work.double, rescue, workers))
    assert [result[0] for result in results] == [[2 * i, 2 * i + 200] for i in range(12)]
    assert {result[1] for result in results} == {1}
    assert cv2.getNumThreads() == before


def test_no_more_than_two_batches_per_worker_are_taken_ahead(work):
    taken = []

    def batches():
        for i in range(20):
            taken.append(i)
            yield [i]

    for done, _ in enumerate(in_order(batches(), work.double, rescue, 2)):
        assert len(taken) <= done + 4


@pytest.mark.parametrize("position", [0, 11])
def test_the_item_that_kills_a_worker_is_lost_and_no_other(work, position):
    batches = [[3 * i, 3 * i + 1000] for i in range(12)]
    batches[position].insert(1, 13)
    results = [result[0] for result in in_order(iter(batches), work.deadly, rescue, 2)]
    assert results == [[None if item == 13 else 2 * item for item in batch] for batch in batches]


def test_workers_that_cannot_start_are_an_error(monkeypatch, tmp_path):
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit(1)")
    main = types.ModuleType("__main__")
    main.__file__ = str(script)
    main.__spec__ = None
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(DatasetError, match="workers cannot be started"):
        list(in_order([[1]], len, rescue, 2))


def test_nothing_to_do_is_done_at_once():
    assert list(in_order([], len, rescue, 1)) == []
