"""Measure what is refused and what is not, by finding: `python -m benchmarks guard [films|phantoms|changes|blind …]`.

Needs ../shared/data, and a minute or two for each part; without arguments all but `blind` are run. Real films and what
is no film go through the shipped pneumonia model as files do in service, phantoms through the phantom model. Phantoms
with one finding each, with a whitened lung or with one lung tell whether the guard refuses the sick. Sample pictures
that other packages bring were not fitted and moved no limit. `blind` refits the chest check and settles its limit again
without the kinds that are then measured.
"""

from __future__ import annotations

import csv
import importlib.util
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from benchmarks._screens import screen
from wetread.errors import Caution, Code, ReadError
from wetread.findings import CHEXPERT
from wetread.infer.predict import Analysis, Predictor
from wetread.radiograph import chest, phantom, screenshot
from wetread.radiograph.read import Radiograph, read
from wetread.radiograph.suitability import suit

DATA = Path(__file__).parents[2] / "shared" / "data"
SUFFIXES = (".png", ".jpeg", ".jpg", ".dcm", ".tif", ".tiff", ".webp")
PACKAGES = ("skimage/data", "matplotlib/mpl-data", "sklearn/datasets", "networkx", "pydicom/data", "mlflow/server")
Pixels = NDArray[np.uint8]


def files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES]


def samples() -> Iterator[Path]:
    """Yield the pictures that installed packages bring, icons aside."""
    for place in PACKAGES:
        found = importlib.util.find_spec(place.split("/")[0])
        if found is not None and found.origin:
            yield from (f for f in files(Path(found.origin).parents[1] / place) if f.parent.name != "images")


def rate(number: int, of: int) -> str:
    """Return a share with its exact interval (Clopper and Pearson)."""
    if not of:
        return "none"
    low, high = binomtest(number, of).proportion_ci()
    return f"{number} of {of}, {100 * number / of:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def row(name: str, analyses: Iterable[Analysis]) -> list[Analysis]:
    """Print one line: how many, how many refused and why, how many with which caution."""
    analyses = list(analyses)
    refused = [a for a in analyses if not a.suitable]
    codes = ", ".join(f"{code} {n}" for code, n in Counter(a.code for a in refused).most_common())
    cautions = Counter(c for a in analyses if a.suitable for c in a.caution_codes)
    shown = ", ".join(f"{c} {cautions[c]}" for c in Caution if cautions[c] and c not in ("AGE_UNKNOWN", "VIEW_UNKNOWN"))
    print(
        f"| {name} | {rate(len(refused), len(analyses))} | {codes} | {shown} |",
        flush=True,
    )
    return analyses


def head(title: str) -> None:
    print(f"\n{title}\n\n| images | refused (95 % interval) | codes | cautions |\n|---|---|---|---|")


def real(predictor: Predictor) -> None:
    head("Chest radiographs")
    for label in ("NORMAL", "PNEUMONIA"):
        row(f"kermany224, {label.lower()}", predictor.analyse_many(files(DATA / "kermany224/train" / label)))
    row("nih64", predictor.analyse_many(files(DATA / "nih64")))
    row("native", predictor.analyse_many(files(DATA / "native")))
    paths = files(DATA / "nih1000")
    analyses = row("nih1000", predictor.analyse_many(paths))
    with (DATA / "nih1000/Data_Entry_2017.csv").open() as table:
        labels = {line["Image Index"]: line["Finding Labels"].split("|") for line in csv.DictReader(table)}
    for finding in sorted({finding for path in paths for finding in labels[path.name]}):
        row(f"nih1000, {finding}", [a for p, a in zip(paths, analyses, strict=True) if finding in labels[p.name]])


def other(predictor: Predictor) -> None:
    head("No chest radiographs")
    for folder in sorted((DATA / "ood").iterdir()):
        row(folder.name, predictor.analyse_many(files(folder)))
    row("packages' samples", predictor.analyse_many(list(samples())))
    grey = [cv2.imread(str(f), cv2.IMREAD_GRAYSCALE) for f in samples() if f.suffix != ".dcm"]
    grey = [picture for picture in grey if picture is not None and min(picture.shape) >= 48]
    row("the same, made grey", predictor.analyse_many([Radiograph(picture) for picture in grey]))
    print("\n| DICOM | code | by the picture alone |\n|---|---|---|")
    for file in files(DATA / "dicom"):
        film = read(file)
        bare = replace(film, modality=None, body_part=None, view=None)
        print(f"| {file.name} | {predictor.analyse(film).code} | {predictor.analyse(bare).code} |")


def whitened(film: Radiograph, lungs: NDArray[np.bool_], side: int, *, narrow: bool) -> Radiograph:
    """Return a phantom with one lung white, and for a missing lung also drawn towards that side."""
    half = np.zeros_like(lungs)
    middle = lungs.shape[1] // 2
    half[:, slice(0, middle) if side == 0 else slice(middle, None)] = True
    share = cv2.GaussianBlur((lungs & half).astype(np.float32), (0, 0), lungs.shape[1] / 80)
    white = float(np.percentile(film.pixels, 88))
    pixels = np.clip(film.pixels * (1 - share) + white * share, 0, 255).astype(np.uint8)
    if narrow:
        shift = np.float32([[1, 0, (-1 if side == 0 else 1) * 0.07 * middle], [0, 1, 0]])
        size = (pixels.shape[1], pixels.shape[0])
        pixels = np.asarray(cv2.warpAffine(pixels, shift, size, borderMode=cv2.BORDER_REPLICATE), np.uint8)
    return replace(film, pixels=pixels)


def phantoms(predictor: Predictor, count: int = 40) -> None:
    head("Phantoms")
    for finding in CHEXPERT.findings:
        made = (phantom.make(seed, findings=[finding], view="PA" if seed % 2 else "AP") for seed in range(count))
        row(finding, predictor.analyse_many(one.radiograph for one in made))
    every = [phantom.make(1000 + seed) for seed in range(count)]
    for name, narrow in (("white-out of one lung", False), ("one lung", True)):
        pairs = [whitened(p.radiograph, p.lungs, side, narrow=narrow) for p in every for side in (0, 1)]
        row(name, predictor.analyse_many(pairs))
    both = [whitened(whitened(p.radiograph, p.lungs, 0, narrow=False), p.lungs, 1, narrow=False) for p in every]
    row("white-out of both lungs", predictor.analyse_many(both))


def cut(pixels: Pixels, side: str, share: float) -> Pixels:
    height, width = pixels.shape
    top, bottom = (int(share * height) * (side == s) for s in ("top", "bottom"))
    left, right = (int(share * width) * (side == s) for s in ("left", "right"))
    return np.ascontiguousarray(pixels[top : height - bottom, left : width - right])


def expose(pixels: Pixels, how: str) -> Pixels:
    x = pixels / 255.0
    changed = {"too dark": (x - 0.6) / 0.4, "too bright": 2 * x, "flat": 0.4 + 0.12 * x}[how]
    return np.asarray(np.clip(255 * changed, 0, 255), np.uint8)


def changed() -> None:
    """Change real films of patients on whom nothing was fitted, and tell how often that is noticed."""
    from benchmarks.chest import divided

    chosen = {name: [f for f, other in zip(*divided(name), strict=True) if other] for name in ("kermany224", "nih1000")}
    films = [read(f) for f in (*chosen["kermany224"][::6], *chosen["nih1000"])]
    print(
        f"\n{len(films)} films, changed\n\n| change | refused | with the code meant | with the caution meant |\n"
        "|---|---|---|---|"
    )

    def line(name: str, pictures: Sequence[Pixels], code: Code | None, caution: Caution | None) -> None:
        answers = [suit(Radiograph(pixels)) for pixels in pictures]
        refused = [a for a in answers if not a.suitable]
        meant = sum(a.code is code for a in refused)
        said = sum(caution in a.caution_codes for a in answers)
        print(
            f"| {name} | {rate(len(refused), len(answers))} | {meant} | {rate(said, len(answers))} |",
            flush=True,
        )

    whole = [np.asarray(film.pixels, np.uint8) for film in films]
    line("none", whole, None, Caution.CROPPED)
    line("black and white exchanged", [255 - p for p in whole], Code.INVERTED, None)
    line("on its head", [np.ascontiguousarray(p[::-1]) for p in whole], Code.NOT_CHEST, None)
    line("turned by a half", [np.ascontiguousarray(np.rot90(p, 2)) for p in whole], Code.NOT_CHEST, None)
    for quarters, side in ((1, "left"), (3, "right")):
        turned = [np.ascontiguousarray(np.rot90(p, quarters)) for p in whole]
        line(f"on its {side} side", turned, Code.NOT_CHEST, None)
    for side in ("top", "bottom", "left", "right"):
        for share in (0.15, 0.3):
            line(f"{share:.0%} cut off, {side}", [cut(p, side, share) for p in whole], None, Caution.CROPPED)
    for how in ("too dark", "too bright", "flat"):
        line(how, [expose(p, how) for p in whole], None, Caution.EXPOSURE)
    screens = [screen(p, seed) for seed, p in enumerate(whole[::3])]
    line("on a screen with menus", screens, Code.SCREENSHOT, None)
    half = [np.asarray(cv2.resize(p, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.uint8) for p in screens]
    line("the same, at half size", half, Code.SCREENSHOT, None)


def text() -> None:
    print("\n| films | most blocks of text | as many as a screen |\n|---|---|---|")
    for name in ("kermany224", "nih1000", "native"):
        found = [screenshot.text(read(f)).blocks for f in files(DATA / name)]
        print(f"| {name} | {max(found)} | {sum(n >= screenshot.MANY for n in found)} of {len(found)} |")


def edge(predictor: Predictor) -> None:
    """Tell what the second question, to the model's features, changes."""
    print("\n| images | in doubt | known to the model |\n|---|---|---|")
    for name in ("kermany224", "nih1000", "ood"):
        doubtful = []
        for file in files(DATA / name):
            try:
                film = read(file)
            except ReadError:
                continue
            if chest.distance(film) > 1 and suit(film, population=predictor.package.meta.population).doubtful:
                doubtful.append(film)
        known = sum(a.suitable for a in predictor.analyse_many(doubtful))
        print(f"| {name} | {len(doubtful)} | {known} |")


def blind() -> None:
    """Settle the limit of the chest check without the kinds that it is then measured on."""
    from benchmarks.chest import fitted, no_chests

    chests, held_out = fitted()
    kinds = no_chests()
    slices = [kind for kind in kinds if kind != "Hand"]
    print("\n| left out | limit, of the shipped | nearest, of the limit | refused | films held out that pass |")
    print("|---|---|---|---|---|")
    shipped = chest.settle(chests, list(held_out.values()), np.concatenate(list(kinds.values()))).threshold
    total = []
    for left in ([], *([kind] for kind in kinds), [kind for kind in slices if kind.endswith("CT")], slices):
        others = np.concatenate([part for kind, part in kinds.items() if kind not in left])
        settled = chest.settle(chests, list(held_out.values()), others)
        distances = np.concatenate([settled.distance(kinds[kind]) for kind in left or kinds])
        passing = [int((settled.distance(part) <= 1).sum()) for part in held_out.values()]
        films = rate(sum(passing), sum(map(len, held_out.values())))
        print(
            f"| {', '.join(left) or 'nothing: fitted'} | {settled.threshold / shipped:.3f} | {distances.min():.2f} | "
            f"{rate(int((distances > 1).sum()), len(distances))} | {films} |"
        )
        if len(left) == 1:
            total.append(distances)
    every = np.concatenate(total)
    print(f"\nEach kind left out once: refused {rate(int((every > 1).sum()), len(every))},")
    print(f"and beyond doubt (1.2 times the limit) {rate(int((every > 1.2).sum()), len(every))}.")


def main() -> None:
    parts = sys.argv[1:] or ["films", "phantoms", "changes"]
    if "films" in parts:
        with Predictor.open("pneumonia") as predictor:
            real(predictor)
            other(predictor)
            edge(predictor)
        text()
    if "phantoms" in parts:
        with Predictor.open("phantom") as predictor:
            phantoms(predictor)
    if "changes" in parts:
        changed()
    if "blind" in parts:
        blind()


if __name__ == "__main__":
    main()
