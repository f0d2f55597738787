"""Fit, ship and measure the chest check: `python benchmarks/chest.py [--fit]` (a minute; needs ../shared/data).

Fitted on four fifths of the patients of three public collections and on phantoms, each also shifted, turned, scaled,
padded, blurred and with one lung whitened; the threshold lies 8 % beyond what 99.5 % of the other patients need.
What is no chest is only measured, never fitted. The estimate of what is cut off a film is fitted on the same patients'
films, cropped; its limits are such that 99.5 % of the other patients' count as whole at each side in each collection.
"""

from __future__ import annotations

import argparse
import re
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
        white = 0.85 * cv2.GaussianBlur(white, (0, 0), 2)
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


def fit() -> None:
    rng = np.random.default_rng(0)
    parts, weights, held_out = [], [], []
    for name, (pattern, copies) in COLLECTIONS.items():
        files = list(films(DATA / name))
        patients = [str(re.search(pattern, f.name).groups()) for f in files]
        others = set(rng.permutation(sorted(set(patients)))[: len(set(patients)) // 5])
        thumbs = [thumb(f) for f in files]
        own = [t for t, p in zip(thumbs, patients, strict=True) if p not in others]
        rest = [t for t, p in zip(thumbs, patients, strict=True) if p in others]
        altered = [alter(t, rng) for t in own for _ in range(copies)]
        parts += [describe(own), describe(altered)]
        weights += [np.full(len(own), 0.5 / len(own)), np.full(len(altered), 0.5 / len(altered))]
        held_out.append(describe(rest))
    synthetic = describe([chest.thumbnail(phantom.make(seed).radiograph) for seed in range(100)])
    parts.append(synthetic)
    weights.append(np.full(len(synthetic), 0.3 / len(synthetic)))
    fewest = min(len(part) for part in held_out)  # each collection counts alike in the threshold
    equal = np.concatenate([part[rng.permutation(len(part))[: 2 * fewest]] for part in held_out])
    chests = chest.fit(np.concatenate(parts), np.concatenate(weights), equal)
    for name, part in zip(COLLECTIONS, held_out, strict=True):
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
    for name, (pattern, copies) in COLLECTIONS.items():
        files = list(films(DATA / name))
        patients = [str(re.search(pattern, f.name).groups()) for f in files]
        others = set(rng.permutation(sorted(set(patients)))[: len(set(patients)) // 5])
        cropped = []
        for file, patient in zip(files, patients, strict=True):
            whole = squash(read(file), 256)
            if patient in others:
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
