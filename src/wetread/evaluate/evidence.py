"""Everything that an evaluation says beside its figures: slices, mistakes, behaviour, places, shortcuts, costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wetread.dataset.dataset import Dataset
from wetread.errors import DatasetError
from wetread.evaluate import attributes, behaviour, conformal, costs, hard, localisation, shortcuts, slices
from wetread.evaluate.behaviour import Behaviour
from wetread.evaluate.conformal import Choice, Conformal, Coverage
from wetread.evaluate.costs import Cost
from wetread.evaluate.hard import Batch, Right
from wetread.evaluate.localisation import Localised
from wetread.evaluate.metrics import FloatArray
from wetread.evaluate.shortcuts import Shortcuts, Twins
from wetread.evaluate.slices import Correction, Slices
from wetread.findings import Task
from wetread.radiograph.pixels import Transform

Score = Callable[[NDArray[np.uint8]], NDArray[np.floating[Any]]]
Maps = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
Overlay = Callable[[NDArray[np.uint8], NDArray[np.float32]], NDArray[np.uint8]]

SHOWN = 6
"""Missed cases, and false alarms, in the report."""

CHANGED = 120
"""Images that behaviour is tried on."""

BLINDED = 600
"""Images that are scored again without lungs."""

_BATCH = 16


@dataclass(frozen=True)
class Options:
    """What to look for.

    Attributes
    ----------
    point : str
        Operating point of slices, mistakes and behaviour.
    columns : tuple of str
        Columns of the manifest to slice by, beside the usual ones.
    correction : {"holm", "benjamini-hochberg"}
    boxes : Path or None
        Where findings are, in the layout of NIH's ``BBox_List_2017.csv``.
    batch : Batch or None
        Evaluate on the images of this hard batch.
    sets : mapping or None
        The package's conformal cut-offs, as `Conformal.to_dict` gives them.
    rerun : bool
        Run the model again: behaviour, lungs out, heatmaps.
    phantoms : int
        Bodies for the direction checks; 0 for none.
    seed : int
    """

    point: str = "balanced"
    columns: tuple[str, ...] = ()
    correction: Correction = "holm"
    boxes: Path | None = None
    batch: Batch | None = None
    sets: Mapping[str, Any] | None = None
    rerun: bool = True
    phantoms: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Mistake:
    """A hard case with its picture.

    Attributes
    ----------
    case : Case
    kind : {"missed", "false alarm"}
    about : str
        Sex, age band, view, source, as far as they are known.
    picture, heatmap : bytes
        JPEG; empty where nothing was drawn.
    """

    case: hard.Case
    kind: str
    about: str
    picture: bytes
    heatmap: bytes


@dataclass(frozen=True)
class Evidence:
    """See the attributes' own modules; None or empty where it was not looked for.

    Attributes
    ----------
    point : str
        Operating point of slices, mistakes and behaviour.
    slices : Slices or None
    mistakes : tuple of Mistake
        The hardest, worst first; missed ones before false alarms.
    localisation : tuple of Localised
    behaviour : Behaviour or None
    shortcuts : Shortcuts or None
    costs : tuple of Cost
    hard : Right or None
        When the images are a hard batch.
    coverage : tuple of Coverage
        Of the package's conformal sets on these images.
    alpha : float
        Share of true answers that the sets may miss; NaN without sets.
    choice : Choice or None
        For the sets of findings of an exclusive task.
    """

    point: str
    slices: Slices | None = None
    mistakes: tuple[Mistake, ...] = ()
    localisation: tuple[Localised, ...] = ()
    behaviour: Behaviour | None = None
    shortcuts: Shortcuts | None = None
    costs: tuple[Cost, ...] = ()
    hard: Right | None = None
    coverage: tuple[Coverage, ...] = ()
    alpha: float = float("nan")
    choice: Choice | None = None

    def cautions(self) -> tuple[str, ...]:
        """Return what of it belongs on the first page."""
        sentences = self.shortcuts.cautions() if self.shortcuts else []
        sentences += self.slices.cautions() if self.slices else []
        if self.behaviour and (failed := len(self.behaviour.cautions())):
            sentences.append(f"{failed} of {len(self.behaviour.checks)} behaviour checks fail.")
        if self.hard:
            sentences.insert(
                0,
                f"These images are the hard batch {self.hard.name}, chosen because a model was wrong on them: compare "
                "models by its cases; no other figure here says how good a model is.",
            )
        return tuple(sentences)


def gather(
    dataset: Dataset,
    rows: NDArray[np.int64],
    task: Task,
    labels: FloatArray,
    probability: FloatArray,
    points: dict[str, dict[str, float]],
    options: Options,
    *,
    score: Score,
    transform: Transform,
    maps: Maps | None = None,
    overlay: Overlay | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Evidence:
    """Collect the evidence on the images in `rows`.

    Parameters
    ----------
    dataset : Dataset
    rows : int64 [N]
    task, transform
        The model's.
    labels, probability : float64 [N, F]
        In the order of `task`.
    points : dict of point to dict of finding to threshold
    options : Options
    score : callable
        From uint8 [B, 1, H, W] to probabilities [B, F].
    maps : callable, optional
        From uint8 [B, 1, H, W] to finding maps [B, F, h, w].
    overlay : callable, optional
        From a picture uint8 [H, W] and a map [h, w] to a coloured picture uint8 [H, W, 3].
    progress : callable
        Told what comes next.

    Raises
    ------
    WetreadError
        For an unknown column or boxes that do not fit the dataset.
    """
    manifest = dataset.manifest[rows]
    patient = manifest["patient"].to_numpy()
    thresholds = points[options.point]
    rng = np.random.default_rng(options.seed)

    def some(count: int) -> NDArray[np.intp]:
        return np.sort(rng.permutation(len(rows))[:count])

    progress("slices")
    groups = attributes.of(dataset, rows, options.columns)
    sliced = slices.evaluate(
        task,
        probability,
        labels,
        groups,
        groups=patient,
        thresholds=thresholds,
        point=options.point,
        correction=options.correction,
    )
    progress("shortcuts")
    coincidences = shortcuts.coincidences(task, labels, attributes.known(dataset, rows), groups=patient)
    blind, behaved = None, None
    # Behaviour and lungs are about one picture; a study is several, side by side.
    rerun = options.rerun and dataset.pixels.shape[1:] == (transform.size, transform.size)
    if rerun:
        chosen = some(BLINDED)
        blind = shortcuts.lungs_out(
            score,
            task,
            dataset.pixels[rows[chosen]],
            labels[chosen],
            probability[chosen],
            shortcuts.chest_zone(transform),
            groups=patient[chosen],
        )
        progress("behaviour")
        chosen = some(CHANGED)
        checks = behaviour.invariance(score, task, dataset.pixels[rows[chosen]], thresholds, groups=patient[chosen])
        if options.phantoms:
            checks += behaviour.direction(score, task, transform, count=options.phantoms, seed=options.seed)
        behaved = Behaviour(options.point, tuple(checks))
    progress("mistakes")
    found = [
        cost
        for f, finding in enumerate(task.findings)
        if finding != task.normal
        and (
            cost := costs.evaluate(
                finding, labels[:, f], probability[:, f], {n: at[finding] for n, at in points.items()}
            )
        )
    ]
    sets = Conformal.from_dict(task, options.sets) if options.sets else None
    right = None
    if options.batch is not None:
        where, columns = hard.rows(options.batch, dataset, task, str(manifest["split"][0]))
        place = {int(row): n for n, row in enumerate(rows)}
        taken = np.array([place[int(row)] for row in where])
        right = hard.right(
            options.batch, probability[taken], columns, [thresholds[f] for f in task.findings], patient[taken]
        )
    return Evidence(
        options.point,
        sliced,
        _mistakes(dataset, rows, task, labels, probability, thresholds, maps if rerun else None, overlay),
        _places(dataset, rows, task, labels, probability, thresholds, options.boxes, maps),
        behaved,
        Shortcuts(coincidences, _twins(dataset, rows), blind),
        tuple(found),
        right,
        conformal.coverage(sets, probability, labels, groups=patient) if sets else (),
        sets.alpha if sets else float("nan"),
        conformal.exclusive_coverage(sets, probability, labels, groups=patient) if sets and task.exclusive else None,
    )


def _twins(dataset: Dataset, rows: NDArray[np.int64]) -> Twins:
    split = dataset.manifest["split"].to_numpy()
    others = np.flatnonzero(split != split[rows[0]]).astype(np.int64)
    pairs = shortcuts.twins(dataset.pixels, rows, others)
    image = dataset.manifest["image"]
    shown = tuple((str(image[one]), str(image[other]), str(split[other])) for one, other in pairs[:20])
    return Twins(len(pairs), len(rows), len(others), shown)


def _mistakes(
    dataset: Dataset,
    rows: NDArray[np.int64],
    task: Task,
    labels: FloatArray,
    probability: FloatArray,
    thresholds: dict[str, float],
    maps: Maps | None,
    overlay: Overlay | None,
) -> tuple[Mistake, ...]:
    """Return the hardest cases, a few of each finding, with their pictures."""
    images = dataset.manifest[rows]["image"].to_list()
    each = SHOWN if len(task.findings) <= 2 else 2
    cases = hard.worst(task, images, probability, labels, thresholds, count=each)
    place = {image: n for n, image in enumerate(images)}
    known = attributes.known(dataset, rows)
    result = []
    for kind in ("missed", "false alarm"):
        for case in [case for case in cases if case.kind == kind][:SHOWN]:
            n = place[case.image]
            pixels = np.array(dataset.pixels[rows[n]])
            heat = b""
            if maps is not None and overlay is not None:
                values = maps(pixels[None, None])[0, task.findings.index(case.finding)]
                heat = _jpeg(overlay(pixels, values)[..., ::-1])
            about = ", ".join(f"{values[n]}" for values in known.values() if values[n])
            result.append(Mistake(case, kind, about, _jpeg(pixels), heat))
    return tuple(result)


def _jpeg(picture: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".jpg", np.ascontiguousarray(picture), [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()


def _places(
    dataset: Dataset,
    rows: NDArray[np.int64],
    task: Task,
    labels: FloatArray,
    probability: FloatArray,
    thresholds: dict[str, float],
    boxes: Path | None,
    maps: Maps | None,
) -> tuple[Localised, ...]:
    """Compare maps with masks that were packed, or with boxes; nothing where neither is known."""
    if maps is None or (boxes is None and dataset.masks is None):
        return ()
    side = dataset.transform.size
    listed = localisation.read_boxes(boxes) if boxes is not None else {}
    if boxes is not None and dataset.pixels.shape[1] != dataset.pixels.shape[2]:
        raise DatasetError(f"{boxes}: boxes are about images, and studies are judged here")
    if boxes is not None and dataset.transform.name != "plain":
        raise DatasetError(f"{boxes}: boxes need the whole radiograph, and this model's transform crops it")
    column = {finding: n for n, finding in enumerate(dataset.task.findings)}
    images, patient = (dataset.manifest[rows][name].to_list() for name in ("image", "patient"))
    names = [Path(image).name for image in images]
    if boxes is not None and not {image for image, _ in listed} & set(names):
        raise DatasetError(f"{boxes}: none of its images is among those evaluated")
    work = [
        (n, f)
        for n in range(len(rows))
        for f, finding in enumerate(task.findings)
        if labels[n, f] == 1 and (boxes is None or (names[n], finding) in listed)
    ]
    place = localisation.Localiser(task, thresholds)
    for start in range(0, len(wanted := sorted({n for n, _ in work})), _BATCH):
        batch = wanted[start : start + _BATCH]
        heat = dict(zip(batch, maps(np.ascontiguousarray(dataset.pixels[rows[batch], None])), strict=True))
        for n, f in work:
            if n not in heat:
                continue
            finding = task.findings[f]
            if boxes is not None:
                mask = localisation.box_mask(listed[names[n], finding], side)
            else:
                assert dataset.masks is not None
                mask = np.asarray(dataset.masks[rows[n], column[finding]]) > 127
            place.add(finding, heat[n][f], mask, probability[n, f], patient[n])
    return place.result()
