"""Whole training in images/s, beside a plain timm and PyTorch script (`--backbone`, `--images`; minutes).

Both train the same network on the same packed pixels with the same batches, threads, precision and AdamW. The plain
script is what one writes first: a `Dataset` over the memory-mapped pixels, `DataLoader` with workers, torchvision's
random affine transform, mean of binary cross-entropy, `backward`, `step`; its workers are chosen in its favour (the
best of 0, 1 and 2). Ours is `wetread.train.loop.train` as a user runs it: loader, masked loss, clipping, schedule. An
epoch is timed from its first step to its last, after one epoch to warm up, without validation; the order alternates
and the medians of `--repeats` are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import timm
import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from wetread.dataset import dataset as datasets
from wetread.dataset.dataset import Dataset
from wetread.findings import CHEXPERT
from wetread.radiograph.pixels import plain
from wetread.train.loop import train
from wetread.train.recipe import Recipe
from wetread.train.world import device


def write(folder: Path, images: int, size: int) -> Dataset:
    """A packed dataset of random grey with random labels; a tenth of it is for validation."""
    rng = np.random.default_rng(0)
    np.save(folder / datasets.PIXELS, rng.integers(0, 256, (images, size, size), np.uint8))
    labels = rng.integers(0, 2, (images, len(CHEXPERT.findings)))
    columns = {
        "image": [f"{i}.png" for i in range(images)],
        "patient": [f"p{i}" for i in range(images)],
        "study": [f"s{i}" for i in range(images)],
        "view": ["PA"] * images,
        "sex": ["F"] * images,
        "age_years": np.full(images, 40, np.float32),
        "split": ["valid" if i % 10 == 0 else "train" for i in range(images)],
        "source": ["noise"] * images,
    }
    manifest = pl.DataFrame(columns).with_columns(
        pl.Series(finding, labels[:, column], dtype=pl.Int8) for column, finding in enumerate(CHEXPERT.findings)
    )
    manifest.write_parquet(folder / datasets.MANIFEST)
    transform = plain(size)
    transform.save(folder / datasets.TRANSFORM)
    info = {
        "schema_version": datasets.SCHEMA_VERSION,
        "sha256": datasets.digest(CHEXPERT, transform, manifest, folder),
        "task": CHEXPERT.to_dict(),
        "transform": transform.parameters(),
        "collection": {"title": "noise", "attribution": "nobody", "licence": "none"},
    }
    (folder / datasets.INFO).write_text(json.dumps(info))
    return Dataset.open(folder)


class Plain(TorchDataset):
    """What a tutorial writes."""

    def __init__(self, dataset: Dataset) -> None:
        self.path, self.rows = dataset.path / datasets.PIXELS, dataset.rows("train")
        self.labels = torch.from_numpy(dataset.labels)
        self.pixels: np.ndarray | None = None
        self.change = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.RandomAffine(
                    7, (0.05, 0.05), (0.9, 1.1), interpolation=transforms.InterpolationMode.BILINEAR
                ),
            ]
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self.pixels is None:
            self.pixels = np.load(self.path, mmap_mode="r")
        row = self.rows[index]
        image = torch.from_numpy(np.array(self.pixels[row]))[None]
        return self.change(image).float() / 127.5 - 1, self.labels[row]


def plain_rate(dataset: Dataset, a: argparse.Namespace, workers: int) -> float:
    where = device("auto")
    network = timm.create_model(a.backbone, in_chans=1, num_classes=len(CHEXPERT.findings))
    network = network.to(where, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
    loader = DataLoader(
        Plain(dataset), a.batch, shuffle=True, num_workers=workers, drop_last=True, pin_memory=where.type == "cuda"
    )

    def epoch() -> float:
        done, start = 0, 0.0
        for x, y in loader:
            x, y = x.to(where, non_blocking=True), y.to(where, non_blocking=True)
            with torch.autocast(where.type, torch.bfloat16, enabled=a.precision == "bf16"):
                logits = network(x.to(memory_format=torch.channels_last))
            loss = functional.binary_cross_entropy_with_logits(logits.float(), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if start:
                done += len(x)
                loss.item()
            else:
                start = time.perf_counter()  # the first step pays for the start of the workers
        return done / (time.perf_counter() - start)

    epoch()
    return epoch()


def our_rate(dataset: Dataset, a: argparse.Namespace, out: Path) -> float:
    recipe = Recipe.model_validate(
        {
            "name": "training",
            "threads": a.threads,
            "loaders": a.loaders,
            "network": {"backbone": a.backbone},
            "augment": {"flip": 0.5, "rotate": 7, "shift": 0.05, "zoom": 0.1},
            "optimise": {"epochs": 2, "batch": a.batch, "precision": a.precision, "keep": "last"},
            "tracking": {"sinks": []},
        }
    )
    at: list[tuple[str, int, float]] = []
    train(recipe, dataset, out, progress=lambda what, done, _: at.append((what, done, time.perf_counter())))
    second = [(done, when) for what, done, when in at if what == "epoch 2/2"]
    (first, start), (last, end) = second[0], second[-2]  # the last batch may be smaller
    return (last - first) * a.batch / (end - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--loaders", type=int, default=1)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2], help="of the plain script's DataLoader")
    parser.add_argument("--repeats", type=int, default=3)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        (data := Path(folder) / "data").mkdir()
        dataset = write(data, a.images, a.size)
        for repeat in range(a.repeats):
            for workers in a.workers:
                rates.setdefault(f"plain timm, {workers} workers", []).append(plain_rate(dataset, a, workers))
            rates.setdefault("wetread train", []).append(our_rate(dataset, a, Path(folder) / f"run{repeat}"))
    best = max(statistics.median(v) for name, v in rates.items() if name.startswith("plain"))
    print(f"{a.backbone}, {a.size}², batches of {a.batch}, {a.precision}, {a.threads} threads, {device('auto')}\n")
    print(f"{'':<24}{'images/s':>10}{'× best plain':>14}{'lowest':>9}{'highest':>9}")
    for name, values in rates.items():
        middle = statistics.median(values)
        print(f"{name:<24}{middle:>10.1f}{middle / best:>14.2f}{min(values):>9.1f}{max(values):>9.1f}")


if __name__ == "__main__":
    main()
