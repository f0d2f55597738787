"""The same work on a real Ray cluster of two machines (on loopback), with processes and a machine killed on the way."""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import polars as pl
import psutil
import pytest

ray = pytest.importorskip("ray", reason="needs the cluster extra")
torch = pytest.importorskip("torch", reason="needs the train extra")
pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves its own sockets and processes to the end
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

import tiny_package  # noqa: E402
from cluster_work import by_one, deadly, failing, once, where  # noqa: E402
from squares import squares, write_dataset  # noqa: E402

from wetread import cluster  # noqa: E402
from wetread.config import Settings  # noqa: E402
from wetread.dataset import sources, split  # noqa: E402
from wetread.dataset.pack import pack  # noqa: E402
from wetread.errors import ConfigError, DatasetError  # noqa: E402
from wetread.findings import PNEUMONIA  # noqa: E402
from wetread.infer import scoring  # noqa: E402
from wetread.radiograph import phantom  # noqa: E402
from wetread.radiograph.pixels import plain  # noqa: E402
from wetread.train import sweep  # noqa: E402
from wetread.train.loop import train  # noqa: E402
from wetread.train.recipe import Recipe  # noqa: E402


@pytest.fixture(scope="module")
def machines():
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    here = str(Path(__file__).parent)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = here if before is None else f"{here}{os.pathsep}{before}"
    both = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100 * 2**20})
    both.add_node(num_cpus=2, object_store_memory=100 * 2**20)
    both.wait_for_nodes()
    yield both
    ray.shutdown()
    both.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    pixels, side = squares(80, 1)
    labels = np.stack([1 - side, side], 1).astype(np.float32)
    return write_dataset(tmp_path_factory.mktemp("squares") / "data", PNEUMONIA, labels, pixels)


def recipe(**optimise) -> Recipe:
    values = {"epochs": 3, "batch": 16, "learning_rate": 3e-3, **optimise}
    vit = {"backbone": "vit_tiny_patch16_224", "options": {"img_size": 32, "depth": 1, "embed_dim": 48, "num_heads": 2}}
    return Recipe.model_validate(
        {"name": "r", "threads": 1, "device": "cpu", "network": vit, "optimise": values, "tracking": {"sinks": []}}
    )


def test_both_machines_work_and_results_are_in_order(machines):
    spread = cluster.in_order(machines.address)
    batches = [[i, i + 1] for i in range(0, 16, 2)]
    pairs = [pair for result in spread(iter(batches), where, by_one, 4) for pair in result]
    assert [item for item, _ in pairs] == list(range(16))
    assert len({node for _, node in pairs}) == 2
    assert cluster.workers(machines.address) == 4


def test_an_item_that_kills_costs_itself_alone(machines):
    spread = cluster.in_order(machines.address)
    assert [list(r) for r in spread(iter([[1, 2], [4, 5, 6], [7]]), deadly, by_one, 2)] == [[1, 2], [4, -5, 6], [7]]


def test_an_error_comes_back_as_itself_in_one_line(machines):
    with pytest.raises(DatasetError, match="name it") as caught:
        list(cluster.in_order(machines.address)(iter([[1]]), failing, by_one, 1))
    assert "\n" not in str(caught.value)


def test_packing_gives_the_same_hash_although_a_worker_is_killed(machines, tmp_path):
    phantom.write_chexpert(tmp_path / "raw", 70, 0, size=64, workers=1, laterals=0)
    collection = sources.collect("phantom", tmp_path / "raw")
    rows, _ = split.assign(collection.rows, collection.task)
    collection = replace(collection, rows=rows)
    here = pack(collection, tmp_path / "here", transform=plain(32), workers=1)
    spread = cluster.in_order(machines.address)

    def killed_once(batches, work, rescue, workers):
        return spread(batches, partial(once, tmp_path / "flag", work), rescue, workers)

    there = pack(collection, tmp_path / "there", transform=plain(32), workers=4, spread=killed_once)
    assert (tmp_path / "flag").exists()
    assert there.hash == here.hash
    assert len(there) == 70


def test_scores_are_those_of_one_process_although_a_worker_is_killed(machines, tmp_path):
    package = tiny_package.write(tmp_path / "tiny")
    chest = phantom.make(0, size=128).radiograph.pixels
    (tmp_path / "in").mkdir()
    for number in range(66):
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), np.roll(chest, number % 8, 1))
    (tmp_path / "in" / "7.png").write_bytes(b"torn")
    settings = Settings(threads=1, runtime="onnxruntime")
    spread = cluster.in_order(machines.address)

    def killed_once(batches, work, rescue, workers):
        return spread(batches, partial(once, tmp_path / "flag", work), rescue, workers)

    for name, how in (("one", {}), ("many", {"workers": 4, "spread": killed_once})):
        found = scoring.score(
            str(package.path), tmp_path / "in", tmp_path / f"{name}.parquet", settings=settings, **how
        )
        assert found["codes"] == {"UNREADABLE": 1}
    assert (tmp_path / "flag").exists()
    one, many = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("one", "many"))
    assert one.select("image", "code").equals(many.select("image", "code"))
    np.testing.assert_allclose(
        one.select(PNEUMONIA.findings).to_numpy(), many.select(PNEUMONIA.findings).to_numpy(), atol=1e-6
    )


def kill_when(there: Path, name: str, killed: list[int]) -> threading.Thread:
    """Kill one of the cluster's processes of this name as soon as a file is there."""

    def watch() -> None:
        deadline = time.monotonic() + 150
        while not there.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        for process in psutil.process_iter(["cmdline"]):
            if name in " ".join(process.info["cmdline"] or []):
                process.kill()
                killed.append(process.pid)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_training_in_two_processes_is_that_of_one_although_one_is_killed(machines, dataset, tmp_path):
    chosen = recipe(epochs=20)
    killed: list[int] = []
    watcher = kill_when(tmp_path / "two" / "history.json", "RayTrainWorker", killed)
    result = cluster.train(machines.address, chosen, dataset, tmp_path / "two", 2)
    watcher.join()
    assert killed
    alone = train(chosen, dataset, tmp_path / "one")
    assert len(result["history"]) == len(alone["history"]) == 20
    for a, b in zip(result["history"][:5], alone["history"][:5], strict=True):
        assert a == pytest.approx(b, abs=1e-3)
    assert json.loads((tmp_path / "two" / "history.json").read_text()) == result["history"]


def test_a_sweep_finishes_every_trial_although_a_worker_is_killed(machines, dataset, tmp_path):
    table = {"optimise.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    plan = sweep.plan(recipe(epochs=20), table, dataset, tmp_path / "s", trials=3, pruner="none")
    killed: list[int] = []
    watcher = kill_when(plan.folder / "0000" / "history.json", "ray::work", killed)
    found = sweep.run(plan, 2, spread=partial(cluster.sweep, machines.address))
    watcher.join()
    assert killed
    assert [row["state"] for row in found["trials"]] == ["complete"] * 3
    for row in found["trials"]:
        assert len(json.loads((Path(row["folder"]) / "history.json").read_text())) == 20
    states = [trial.state.name for trial in sweep.open_study(plan).get_trials()]
    assert sorted(states) == ["COMPLETE"] * 3 + ["FAIL"]


def test_a_machine_that_fails_costs_nothing_but_time(machines):
    lost = machines.add_node(num_cpus=2, object_store_memory=100 * 2**20)
    machines.wait_for_nodes()
    results = cluster.in_order(machines.address)(iter([[i] for i in range(40)]), where, by_one, 6)
    first = [next(results) for _ in range(3)]
    machines.remove_node(lost, allow_graceful=False)
    assert [pair[0] for result in [*first, *results] for pair in result] == list(range(40))


def test_no_cluster_at_an_address_is_one_line():
    with pytest.raises(ConfigError, match=r"--ray 127\.0\.0\.1:1") as caught, cluster.joined("127.0.0.1:1"):
        pass
    assert "\n" not in str(caught.value)
