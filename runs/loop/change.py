"""What `runs/loop.sh` needs besides the commands: exposed and mislabelled copies, and the id of a package."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from wetread.dataset import join
from wetread.dataset.dataset import Dataset
from wetread.model.package import Package
from wetread.radiograph import phantom
from wetread.radiograph.read import read
from wetread.radiograph.synthesis import Phantom


def exposed(source: Path, out: Path) -> None:
    """Copy a collection of phantoms with all pixels, 0 to 1, squared: as after `--drift exposure --drift-size 1`."""
    shutil.copytree(source, out)
    table = np.rint((np.arange(256) / 255) ** 2 * 255).astype(np.uint8)
    for file in out.rglob("*.jpg"):
        film = read(file)
        file.write_bytes(phantom.jpeg(Phantom(replace(film, pixels=table[film.pixels]), {}, {}, film.pixels > 0)))


def flipped(source: Path, out: Path, finding: str) -> None:
    """Copy a packed dataset with the labels of one finding turned round where a model learns and is tuned."""
    dataset = Dataset.open(source)
    wrong = pl.when(pl.col("split") != "test").then(1 - pl.col(finding)).otherwise(pl.col(finding)).cast(pl.Int8)
    places = np.stack([np.zeros(len(dataset), np.int64), np.arange(len(dataset))], 1)
    about = dataset.info["collection"] | {"title": f"phantoms, {finding} flipped", "parent": dataset.hash}
    with join.draft(out) as folder:
        join.copy(folder, dataset.manifest.with_columns(wrong.alias(finding)), [dataset], places, about)


def main() -> None:
    """Do what the first argument names."""
    match sys.argv[1:]:
        case ["id", package]:
            print(Package.open(package).id)
        case ["exposed", source, out]:
            exposed(Path(source), Path(out))
        case ["flipped", source, out, finding]:
            flipped(Path(source), Path(out), finding)
        case _:
            sys.exit("change.py: id PACKAGE, exposed FOLDER OUT, or flipped DATASET OUT FINDING")


if __name__ == "__main__":
    main()
