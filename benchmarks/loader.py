"""Does the loader keep up? Augmented batches a second from a memory-mapped dataset, against the training step.

The dataset is written for the purpose (`--images` of `--size`², random grey, so that no file system compresses it) and
read as training reads it: shuffled, augmented as recipes/chexpert.toml says, or as a moderate recipe does. *Cold* drops
the file from the page cache first (`posix_fadvise`) and reads every image once; *warm* reads it again. The step is
forward, backward and AdamW of each backbone on this machine's device, with a batch that is there already. A loader at
or above the step's rate hides behind it, as long as it has a processor of its own: on a CPU that also computes the
step, what counts is the sum, so the share of processor time that loading takes is shown too.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from wetread.findings import CHEXPERT
from wetread.train.batches import Batches
from wetread.train.losses import masked_bce
from wetread.train.network import Network
from wetread.train.recipe import Recipe
from wetread.train.world import device

AUGMENT = {"rotate": 7, "shift": 0.05, "zoom": 0.1, "gamma": 0.2, "contrast": 0.2, "flip": 0.5}
STRONG = AUGMENT | {"blur": 0.2, "noise": 0.2, "equalise": 0.2, "jpeg": 0.2, "erase": 0.2}


def write(path: Path, images: int, size: int) -> np.ndarray:
    pixels = np.lib.format.open_memmap(path, "w+", np.uint8, (images, size, size))
    rng = np.random.default_rng(0)
    for start in range(0, images, 256):
        block = pixels[start : start + 256]
        block[:] = rng.integers(0, 256, block.shape, np.uint8)
    pixels.flush()
    del pixels
    return np.load(path, mmap_mode="r")


def forget(path: Path) -> None:
    """Drop a file from the page cache."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(number)


def recipe(augment: dict[str, float], batch: int, loaders: int, backbone: str = "small_cnn") -> Recipe:
    return Recipe.model_validate(
        {
            "name": "loader",
            "loaders": loaders,
            "network": {"backbone": backbone},
            "augment": augment,
            "optimise": {"batch": batch},
        }
    )


def loader_rate(pixels: np.ndarray, chosen: Recipe, seconds: float) -> tuple[float, float]:
    """Images a second by the clock, and by processor time."""
    wanted = np.zeros((len(pixels), len(CHEXPERT.findings)), np.float32)
    done, wall, processor = 0, time.perf_counter(), time.process_time()
    for batch in Batches(pixels, np.arange(len(pixels)), wanted, chosen).epoch(0):
        done += len(batch.pixels)
        if time.perf_counter() - wall > seconds:
            break
    return done / (time.perf_counter() - wall), done / (time.process_time() - processor)


def step_rate(chosen: Recipe, size: int, precision: str, seconds: float) -> float:
    where = device("auto")
    network = Network(chosen.network, len(CHEXPERT.findings)).to(where).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4)
    batch = chosen.optimise.batch
    x = torch.randint(0, 256, (batch, 1, size, size), dtype=torch.uint8, device=where)
    y = torch.randint(0, 2, (batch, len(CHEXPERT.findings)), device=where).float()

    def step() -> None:
        with torch.autocast(where.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = network(x)
        optimizer.zero_grad(set_to_none=True)
        masked_bce(logits.float(), y).backward()
        optimizer.step()
        if where.type == "cuda":
            torch.cuda.synchronize()

    step()
    step()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        step()
        done += batch
    return done / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000, help="images of the dataset; 224,000 of 224² are 11 GB")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--loaders", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--backbones", nargs="*", default=["mobilenetv2_100", "densenet121"])
    parser.add_argument("--folder", type=Path, help="where to write the dataset; default: a temporary folder")
    a = parser.parse_args()
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(dir=a.folder) as folder:
        path = Path(folder) / "pixels.npy"
        pixels = write(path, a.images, a.size)
        print(f"{a.images} images of {a.size}², {path.stat().st_size / 1e9:.1f} GB; batches of {a.batch}\n")
        print(f"{'loader':<38}{'images/s':>10}{'epoch of 224,000':>18}{'images/s of processor':>23}")
        for name, augment in (("moderate augmentation", AUGMENT), ("strong augmentation", STRONG)):
            for loaders in a.loaders:
                for state in ("cold", "warm"):
                    if state == "cold":
                        forget(path)
                        pixels = np.load(path, mmap_mode="r")
                    wall, processor = loader_rate(pixels, recipe(augment, a.batch, loaders), a.seconds)
                    title = f"{name}, {loaders} thread{'s' * (loaders > 1)}, {state}"
                    print(f"{title:<38}{wall:>10.0f}{224_000 / wall / 60:>14.1f} min{processor:>23.0f}")
    print(f"\n{'training step on ' + str(device('auto')):<38}{'images/s':>10}{'epoch of 224,000':>18}")
    for backbone in a.backbones:
        for precision in ("fp32", "bf16"):
            rate = step_rate(recipe({}, a.batch, 1, backbone), a.size, precision, a.seconds)
            print(f"{backbone + ', ' + precision:<38}{rate:>10.1f}{224_000 / rate / 60:>14.1f} min")


if __name__ == "__main__":
    main()
