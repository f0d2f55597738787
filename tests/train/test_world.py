"""Many processes and many parts of a step change nothing but the time: against one process that takes steps whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

from safetensors.torch import load_file  # noqa: E402
from squares import squares, write_dataset  # noqa: E402

from wetread.dataset.dataset import Dataset  # noqa: E402
from wetread.errors import TrainError  # noqa: E402
from wetread.findings import CHEXPERT, Task  # noqa: E402
from wetread.train import world  # noqa: E402
from wetread.train.batches import Batches  # noqa: E402
from wetread.train.loop import train  # noqa: E402
from wetread.train.losses import labelled, task_loss  # noqa: E402
from wetread.train.recipe import Recipe, dumps  # noqa: E402

# ViT has layer norms, so that what a step does depends on no other image of its batch.
VIT = {"backbone": "vit_tiny_patch16_224", "options": {"img_size": 32, "depth": 1, "embed_dim": 48, "num_heads": 2}}
TWO = Task("sides", ("Left", "Right"))


def recipe(**optimise) -> Recipe:
    values = {"epochs": 2, "batch": 13, "learning_rate": 2e-3, "ema": 0.9, **optimise}
    return Recipe.model_validate(
        {
            "name": "w",
            "threads": 1,
            "device": "cpu",
            "network": VIT,
            "augment": {"shift": 0.1},
            "optimise": values,
            "tracking": {"sinks": []},
        }
    )


@pytest.fixture(scope="module")
def masked(tmp_path_factory) -> Dataset:
    """Squares with gaps: 66 training images (a last step of one), and fewer labels the later the image."""
    pixels, side = squares(88, 1)
    labels = np.stack([1 - side, side], 1).astype(np.float32)
    labels[np.random.default_rng(0).random(labels.shape) < np.linspace(0, 0.9, 88)[:, None]] = np.nan
    return write_dataset(tmp_path_factory.mktemp("masked") / "data", TWO, labels, pixels)


@pytest.fixture(scope="module")
def alone(masked, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(recipe(), masked, folder)
    return folder


def torchrun(processes: int, chosen: Recipe, dataset: Dataset, out: Path, *more: str) -> None:
    file = out.with_suffix(".toml")
    file.write_text(dumps(chosen))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    command += ["-m", "wetread", "train", str(file), str(dataset.path), str(out), "--json", *more]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(result.stdout.strip().splitlines()) == 1, "only the first process speaks"


def assert_same(first: Path, second: Path, tolerance: float = 2e-5) -> None:
    one, other = (json.loads((run / "history.json").read_text()) for run in (first, second))
    assert [entry.keys() for entry in one] == [entry.keys() for entry in other]
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    one, other = (load_file(run / "best.safetensors") for run in (first, second))
    for key in one:
        torch.testing.assert_close(one[key], other[key], atol=tolerance, rtol=1e-4)


def test_a_step_in_parts_is_the_step_as_a_whole(masked, alone, tmp_path):
    train(recipe(accumulate=3), masked, tmp_path / "parts")
    assert_same(alone, tmp_path / "parts")


@pytest.mark.system
def test_two_processes_equal_one(masked, alone, tmp_path):
    torchrun(2, recipe(), masked, tmp_path / "two")
    assert_same(alone, tmp_path / "two")
    assert not list((tmp_path / "two").glob(".*")), "drafts of two writers"


@pytest.mark.system
def test_a_run_goes_on_with_another_number_of_processes(masked, alone, tmp_path):
    train(recipe(), masked, tmp_path / "run", stop_after=1)
    torchrun(2, recipe(), masked, tmp_path / "run")
    assert_same(alone, tmp_path / "run")


@pytest.mark.parametrize("exclusive", [False, True])
def test_losses_of_parts_weighed_by_their_counts_are_the_loss_of_all(exclusive):
    rng = np.random.default_rng(0)
    task = Task("t", ("A", "B", "C"), exclusive=exclusive)
    logits = torch.from_numpy(rng.normal(size=(12, 3)).astype(np.float32))
    wanted = torch.nn.functional.one_hot(torch.arange(12) % 3, 3).float()
    wanted[rng.random(12) < 0.4] = torch.nan
    for weight in (None, torch.tensor([0.5, 2.0, 3.0])):
        whole = task_loss(task, logits, wanted, weight)
        parts = [slice(0, 2), slice(2, 3), slice(3, 12)]
        counts = [labelled(task, wanted[part], weight) for part in parts]
        losses = [task_loss(task, logits[part], wanted[part], weight) for part in parts]
        torch.testing.assert_close(whole, sum(c * x for c, x in zip(counts, losses, strict=True)) / sum(counts))


def test_processes_and_parts_share_the_images_of_each_step(masked):
    rows = masked.rows("train")

    def steps(rank, size, accumulate):
        batches = Batches(masked.pixels, rows, masked.labels, recipe(accumulate=accumulate), rank=rank, size=size)
        seen = list(batches.epoch(0))
        assert len(seen) == len(batches) * accumulate
        return [
            [i.numpy().tobytes() for b in seen[k : k + accumulate] if not b.wanted.isnan().all() for i in b.pixels]
            for k in range(0, len(seen), accumulate)
        ]

    labelled_rows = ~np.isnan(masked.labels[rows]).all(1)
    whole = steps(0, 1, 1)
    assert sum(map(len, whole)) >= labelled_rows.sum()
    shared = zip(*(steps(rank, 3, 2) for rank in range(3)), strict=True)
    for step, of_ranks in zip(whole, shared, strict=True):
        parts = [image for images in of_ranks for image in images]
        assert set(parts) <= set(step)
        assert len(parts) == len(set(parts))


def test_threads_change_no_batch(masked):
    rows = masked.rows("train")
    few, many = (
        torch.cat([b.pixels for b in Batches(masked.pixels, rows, masked.labels, chosen).epoch(1)])
        for chosen in (recipe(), recipe().model_copy(update={"loaders": 4}))
    )
    assert torch.equal(few, many)


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert world.device("auto").type == "cpu"
    with pytest.raises(TrainError, match='device = "cuda"'):
        world.device("cuda")


def test_the_whole_tree_of_chexpert_has_as_many_labels_as_it_counts():
    wanted = torch.full((2, len(CHEXPERT.findings)), torch.nan)
    wanted[0, :5] = 1
    assert labelled(CHEXPERT, wanted).item() == 5
