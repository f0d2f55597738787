"""Fit, ship and measure the chest check: `python benchmarks/chest.py [--fit]` (a minute; needs ../shared/data).

Fitted on four fifths of the patients of three public collections and on phantoms, each also shifted, turned, scaled,
cropped, padded, blurred and with one lung whitened. What is no chest is never fitted; the threshold lies half-way
between what 99.5 % of the other patients need in each collection and the nearest picture in `ood/` (`python -m
benchmarks guard blind` tells how kinds fare that had no say in it). The estimate of what is cut off a film is fitted on
the same patients' films, cropped; its limits are such that 99.5 % of the other patients' count as whole at each side in
each collection.
"""

from __future__ import annotations

import argparse
import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wetread.errors import ReadError
from wetread.radiograph import chest, framing, phantom
from wetread.radiograph.lungs import squash
from wetread.radiograph.read import Radiograph, read
from wetread.radiograph.suitability import suit

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
COLLECTIONS = {  # folder: (pattern of a file's patient, altered copies of each)
    "kermany224": (r"person(\d+)_(bacteria|virus)|((?:NORMAL2-)?IM-\d+)", 1),
    "nih1000": (r"(\d{8})", 6),
    "nih64": (r"(\d{8})", 6),
}
CROPPED = 0.6  # share of the altered copies that are also cropped
Thumbnail = NDArray[np.uint8]


def alter(thumb: Thumbnail, rng: np.random.Generator) -> Thumbnail:
    """Return the thumbnail as another projection, collimation or disease might have made it."""
    side = thumb.shape[0]
    centre = (side / 2 - 0.5, side / 2 - 0.5)
    matrix = cv2.getRotationMatrix2D(centre, rng.normal(0, 4), float(np.exp(rng.normal(0, 0.1))))
    matrix[:, 2] += rng.normal(0, 0.04, 2) * side
    matrix[0, :2] *= np.exp(rng.normal(0, 0.06))
    border = cv2.BORDER_REPLICATE if rng.random() < 0.5 else cv2.BORDER_CONSTANT
    thumb = np.asarray(cv2.warpAffine(thumb, matrix, (side, side), borderMode=border), np.uint8)
    if rng.random() < 0.1:  # padded to a square
        pad = int(rng.uniform(0, 0.18) * side)
        across = rng.random() < 0.5
        inner = cv2.resize(thumb, (side - 2 * pad, side) if across else (side, side - 2 * pad))
        edges = (0, 0, pad, pad) if across else (pad, pad, 0, 0)
        thumb = np.asarray(cv2.copyMakeBorder(inner, *edges, cv2.BORDER_CONSTANT, value=0), np.uint8)
    if rng.random() < 0.08:  # white-out of one lung, or of its lower part
        x = np.linspace(-1, 1, side) * (1 if rng.random() < 0.5 else -1)
        white = 1 / (1 + np.exp(-20 * (x - rng.uniform(0, 0.3))))[None] * np.ones((side, 1))
        white *= np.linspace(0, 1, side)[:, None] > rng.uniform(0, 0.5)
        white = 0.85 * np.asarray(cv2.GaussianBlur(white, (0, 0), 2), np.float64)
        thumb = (thumb * (1 - white) + white * np.percentile(thumb, 85)).astype(np.uint8)
    if rng.random() < 0.2:
        thumb = np.asarray(cv2.GaussianBlur(thumb, (0, 0), rng.uniform(0.5, 2.5)), np.uint8)
    return thumb


def films(folder: Path) -> Iterator[Path]:
    return (f for f in sorted(folder.rglob("*")) if f.suffix in (".png", ".jpeg", ".jpg", ".dcm"))


def thumb(file: Path) -> Thumbnail:
    return chest.thumbnail(read(file, reduce_to=128))


def describe(thumbs: list[Thumbnail]) -> NDArray[np.float64]:
    return np.array([chest.describe(t) for t in thumbs])


def divided(name: str) -> tuple[list[Path], NDArray[np.bool_]]:
    """Return the films of a collection, and which of them are other patients', held out: a fifth, the same in all."""
    files = list(films(DATA / name))
    patients = [str(re.findall(COLLECTIONS[name][0], f.name)[0]) for f in files]
    return files, np.array([zlib.crc32(p.encode()) % 5 == 0 for p in patients])


def fitted() -> tuple[chest.Chests, dict[str, NDArray[np.float64]]]:
    """Return what chests have in common, without a threshold, and the descriptions of the films held out."""
    rng = np.random.default_rng(0)
    parts, weights, held_out = [], [], {}
    for name, (_, copies) in COLLECTIONS.items():
        files, others = divided(name)
        own, altered = [], []
        for file in (f for f, other in zip(files, others, strict=True) if not other):
            whole = squash(read(file, reduce_to=256), 256)
            own.append(squash(Radiograph(whole), chest.THUMBNAIL))
            for _ in range(copies):
                one = crop(whole, rng)[0] if rng.random() < CROPPED else own[-1]
                altered.append(alter(one, rng))
        parts += [describe(own), describe(altered)]
        weights += [np.full(len(own), 0.5 / len(own)), np.full(len(altered), 0.5 / len(altered))]
        held_out[name] = describe([thumb(f) for f, other in zip(files, others, strict=True) if other])
    synthetic = describe([chest.thumbnail(phantom.make(seed).radiograph) for seed in range(100)])
    parts.append(synthetic)
    weights.append(np.full(len(synthetic), 0.3 / len(synthetic)))
    return chest.fit(np.concatenate(parts), np.concatenate(weights)), held_out


def no_chests() -> dict[str, NDArray[np.float64]]:
    """Return the descriptions of the pictures in `ood/` by kind; photographs in colour never get this far."""
    kinds = sorted(f for f in (DATA / "ood").iterdir() if f.is_dir() and f.name != "photo")
    return {kind.name: describe([thumb(f) for f in films(kind)]) for kind in kinds}


def fit() -> None:
    chests, held_out = fitted()
    chests = chest.settle(chests, list(held_out.values()), np.concatenate(list(no_chests().values())))
    for name, part in held_out.items():
        print(f"{name}: {100 * (chests.distance(part) <= 1).mean():.2f} % of {len(part)} held out pass")
    target = ROOT / "src/wetread/radiograph/chest.npz"
    target.write_bytes(chest.to_bytes(chests))
    print(f"{target}: {target.stat().st_size} bytes")


def crop(whole: Thumbnail, rng: np.random.Generator) -> tuple[Thumbnail, NDArray[np.float64]]:
    """Return a quarter of the films as they are, and of the rest what is left after cropping one or two sides."""
    cut = np.zeros(4)
    if rng.random() < 0.75:
        cut[rng.choice(4, rng.integers(1, 3), replace=False)] = rng.uniform(0, 0.45)
    height, width = whole.shape
    top, bottom, left, right = (cut * [height, height, width, width]).astype(int)
    inner = np.ascontiguousarray(whole[top : height - bottom, left : width - right])
    return np.asarray(cv2.resize(inner, (chest.THUMBNAIL,) * 2, interpolation=cv2.INTER_AREA), np.uint8), cut


def fit_framing() -> None:
    rng = np.random.default_rng(0)
    parts, cuts, weights, held_out = [], [], [], []
    for name, (_, copies) in COLLECTIONS.items():
        cropped = []
        for file, other in zip(*divided(name), strict=True):
            whole = squash(read(file), 256)
            if other:
                held_out.append((name, chest.describe(squash(Radiograph(whole), chest.THUMBNAIL))))
            else:
                cropped += [crop(whole, rng) for _ in range(max(2, copies))]
        parts.append(describe([t for t, _ in cropped]))
        cuts.append(np.array([cut for _, cut in cropped]))
        weights.append(np.full(len(cropped), 1 / len(cropped)))
    groups = [np.array([d for n, d in held_out if n == name]) for name in COLLECTIONS]
    found = framing.fit(np.concatenate(parts), np.concatenate(cuts), np.concatenate(weights), groups)
    print("cut off, limits:", dict(zip(framing.SIDES, found.limits.round(3), strict=True)))
    target = ROOT / "src/wetread/radiograph/framing.npz"
    target.write_bytes(framing.to_bytes(found))
    print(f"{target}: {target.stat().st_size} bytes")


def judge(file: Path) -> tuple[float, bool]:
    """Return the distance (NaN where reading refuses) and whether the file suits a model for anyone."""
    try:
        radiograph = read(file, reduce_to=256)
    except ReadError:
        return float("nan"), False
    return chest.distance(radiograph), suit(radiograph).suitable


def measure() -> None:
    folders = [DATA / name for name in COLLECTIONS] + sorted(f for f in (DATA / "ood").iterdir() if f.is_dir())
    print("| folder | images | suit, % | distance: median | 99 % | smallest | largest |\n|---|---|---|---|---|---|---|")
    for folder in folders:
        with ProcessPoolExecutor(2) as pool:
            distances, suits = np.array(list(pool.map(judge, films(folder), chunksize=16))).T
        spread = np.nanquantile(distances, [0.5, 0.99, 0, 1]) if np.isfinite(distances).any() else [np.nan] * 4
        row = " | ".join(f"{v:.2f}" for v in spread)
        print(f"| {folder.name} | {len(suits)} | {100 * suits.mean():.2f} | {row} |")
    for file in films(DATA / "dicom"):
        print(file.name, *judge(file))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true", help="fit and ship before measuring")
    parser.add_argument("--fit-framing", action="store_true", help="the same for what is cut off")
    arguments = parser.parse_args()
    if arguments.fit:
        fit()
    if arguments.fit or arguments.fit_framing:
        fit_framing()
    measure()
