"""The verdict on a challenger: what both packages said of the same studies, and what readers said of them.

Everything is paired: only studies of this stage that both analysed count, and a difference has the spread of the
differences, over patients (`evaluate.clustered`). Each figure must keep a limit with its whole 95 % interval to pass,
and breaks it when the whole interval is beyond; anything else, and too few studies, is *inconclusive*, never a pass.
One figure that is broken rolls back, all that pass promote, anything else holds.

In shadow the readers have seen the champion's word and none of the challenger's: their answers are anchored on the
champion, which makes a challenger that is right where the champion is wrong look worse than it is. What was read blind
is told apart. In canary some have seen the one and some the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from wetread.clinic import store
from wetread.clinic.deployments import CANARY, EVERYWHERE, Slot
from wetread.clinic.figures import walk
from wetread.clinic.store import Store
from wetread.errors import Code
from wetread.evaluate import clustered
from wetread.evaluate.clustered import Contrast, Estimate
from wetread.evaluate.intervals import Interval, Z
from wetread.findings import TASKS
from wetread.improve import browsing
from wetread.improve.browsing import PageLimits, Pages
from wetread.improve.paired import Paired, Said, gather
from wetread.improve.policy import Policy

Judged = Literal["pass", "fail", "inconclusive"]
PROMOTE, HOLD, ROLL_BACK = "promote", "hold", "roll_back"
ANCHORED = (
    "Readers saw the champion's word before they answered, and none of the challenger's: agreement is anchored on the "
    "champion."
)
NORMAL = frozenset(task.normal for task in TASKS.values() if task.normal)  # which nobody misses
_ENOUGH = 20  # studies, for a difference that does not vary
ANCHORED_CANARY = "Readers saw the word of the model that their study drew before they answered: agreement is anchored."


class Limits(Policy):
    """The table `[verdict]` of a rollout policy. Differences are challenger less champion."""

    studies: int = Field(200, ge=20)  # that both analysed, at least
    reviewed: int = Field(50, ge=10)  # … and readers signed
    positives: int = Field(10, ge=5)  # … with a finding, of each whose sensitivity is held
    errors: float = Field(0.02, ge=0, le=1)  # more images that fail, at most
    refusals: float = Field(0.05, ge=0, le=1)  # more images that are refused, at most
    latency: float = Field(1.5, gt=1)  # times the champion's, at most
    shift: float = Field(0.15, gt=0, le=1)  # of the mean probability of a finding, either way
    flags: float = Field(0.15, gt=0, le=1)  # of the share of studies in which it is flagged, either way
    agreement: float = Field(0.05, gt=0, le=1)  # less, of the answers of readers
    sensitivity: float = Field(0.10, gt=0, le=1)  # less, of any finding, and of all together
    most: int = Field(20_000, ge=100)  # images that are looked at, the newest
    browsers: dict[browsing.Name, PageLimits] = Field({}, max_length=32)  # profile → what its pages keep in canary


@dataclass(frozen=True)
class Figure:
    """One figure, its limit, and whether that is kept; `value` is a difference, or a ratio. None: undefined."""

    name: str
    finding: str
    champion: float | None
    challenger: float | None
    value: float | None
    low: float | None
    high: float | None
    limit: str
    count: int
    verdict: Judged
    held: bool = True


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes
    ----------
    outcome : {"promote", "hold", "roll_back"}
    reasons : tuple of str
        Why, the gravest first.
    figures : tuple of Figure
        Those that are not `held` are told, and decide nothing.
    pages : Pages, optional
        In canary, when the policy or whoever asks for the verdict wants the pages judged.
    """

    id: str
    at: datetime
    deployment: str
    stage: str
    slot: str
    site: str
    challenger: str
    champion: str | None
    since: datetime
    studies: int
    images: int
    reviewed: int
    blind: int
    outcome: Literal["promote", "hold", "roll_back"]
    reasons: tuple[str, ...]
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]
    limits: dict[str, Any]
    pages: Pages | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it for the record."""
        return asdict(self) | {"at": self.at.isoformat(), "since": self.since.isoformat()}

    def summary(self) -> dict[str, Any]:
        """Return what the pages tell."""
        kept = {"id": self.id, "at": self.at.isoformat(), "outcome": self.outcome, "reasons": list(self.reasons[:5])}
        return kept | {"studies": self.studies, "reviewed": self.reviewed}


def judge(database: Store, slot: Slot, limits: Limits, site: str = EVERYWHERE, browsers: Path | None = None) -> Verdict:
    """Weigh the challenger of a slot against its champion.

    Parameters
    ----------
    slot : Slot
        With a challenger.
    site : str
        Only its studies; by default those of all sites that the challenger concerns.
    browsers : Path, optional
        What browsers measured of the pages; see `browsing`.

    Raises
    ------
    ConfigError
        When `browsers` is no such report.
    """
    row, champion = slot.challenger, slot.champion
    assert row is not None
    pages = browsing.judge(limits.browsers, row.since, browsers)
    if row.stage != CANARY:  # no page shows what it says
        pages = None
    with database.read() as connection:
        walk(connection)
        pairs = gather(connection, row, champion.model, row.site or site, limits.most) if champion else Paired()
    figures = tuple(_figures(pairs, limits))
    outcome, reasons = decide(pairs, figures, limits, champion is not None, pages)
    notes = [ANCHORED_CANARY if row.stage == CANARY else ANCHORED]
    notes += ["Analyses in shadow come after all others in the queue; their latency counts from their own beginning."]
    return Verdict(
        store.new_id(), store.now(), row.id, row.stage, slot.name, row.site or site, row.model,
        champion.model if champion else None, row.since, len(pairs.studies), len(pairs.images), len(pairs.truth),
        len(pairs.blind), outcome, tuple(reasons), figures, tuple(notes), limits.model_dump(), pages,
    )  # fmt: skip


def decide(
    pairs: Paired, figures: Sequence[Figure], limits: Limits, compares: bool = True, pages: Pages | None = None
) -> tuple[Literal["promote", "hold", "roll_back"], list[str]]:
    """Return what the figures ask for, and why."""
    if not compares:
        return "hold", ["there is no champion to compare it with; a person has to decide"]
    held = [figure for figure in figures if figure.held]
    if broken := [words(figure) for figure in held if figure.verdict == "fail"]:
        return "roll_back", broken
    few = list(pages.reasons) if pages else []  # which say nothing about the model, and roll nothing back
    for have, want, of in (
        (len(pairs.studies), limits.studies, "studies that both analysed"),
        (len(pairs.truth), limits.reviewed, "of them signed"),
    ):
        if have < want:
            few.append(f"{have} {of}, {want} wanted")
    if open_ := [words(figure) for figure in held if figure.verdict == "inconclusive"]:
        return "hold", few + open_
    if few:
        return "hold", few
    return "promote", ["all figures keep their limits", *([f"so do the pages, opened at {pages.at}"] if pages else [])]


def words(figure: Figure) -> str:
    """Return a figure in words."""
    of = f" of {figure.finding}" if figure.finding else ""
    if figure.value is None:
        return f"{figure.name}{of}: too little to say ({figure.count} cases)"
    between = f" ({figure.low:.3g} to {figure.high:.3g})" if figure.low is not None else ""
    return f"{figure.name}{of}: {figure.value:.3g}{between}, wanted {figure.limit}"


def render(said: Verdict) -> str:
    """Return the record in words, Markdown."""
    lines = [
        f"# Verdict on {said.challenger[:12]} in {said.stage} for {said.slot}: **{said.outcome.replace('_', ' ')}**",
        "",
        f"Against {said.champion[:12] if said.champion else 'no champion'}, {said.site or 'every site'}, since "
        f"{said.since:%Y-%m-%d %H:%M} UTC: {said.studies} studies ({said.images} images) that both analysed, "
        f"{said.reviewed} of them signed, {said.blind} of those read blind.",
        "",
        *(f"- {reason}" for reason in said.reasons),
        "",
        "| figure | finding | champion | challenger | difference | 95 % | limit | cases | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for f in said.figures:
        between = "" if f.low is None else f"{f.low:.3g} to {f.high:.3g}"
        values = ("" if value is None else f"{value:.3g}" for value in (f.champion, f.challenger, f.value))
        lines.append(
            f"| {f.name} | {f.finding} | {' | '.join(values)} | {between} | {f.limit} | {f.count} | "
            f"{f.verdict if f.held else 'told only'} |"
        )
    if said.pages is not None:
        lines += ["", *browsing.lines(said.pages)]
    return "\n".join([*lines, "", *(f"{note}" for note in said.notes)]) + "\n"


# ---------------------------------------------------------------------- figures


def _figures(pairs: Paired, limits: Limits) -> Iterable[Figure]:
    if not pairs.images:
        return
    yield from _machines(pairs, limits)
    if pairs.studies:
        yield from _scores(pairs, limits)
        yield from _readers(pairs, limits)


def _patients(pairs: Paired, studies: Iterable[str]) -> NDArray[np.intp]:
    return np.unique([pairs.patients[study] for study in studies], return_inverse=True)[1].astype(np.intp)


def _machines(pairs: Paired, limits: Limits) -> Iterable[Figure]:
    """Errors, refusals and latency, image by image."""
    patient = _patients(pairs, (old["study"] for old, _ in pairs.images))
    every = np.ones(len(pairs.images), dtype=bool)
    failed, refused = (
        [np.array([kind(pair[side]) for pair in pairs.images]) for side in (0, 1)]
        for kind in (lambda r: r["code"] == Code.MODEL_FAILED, lambda r: not r["suitable"])
    )
    for name, (old, new), most in (("errors", failed, limits.errors), ("refusals", refused, limits.refusals)):
        one, other = (clustered.share(hit, every, patient) for hit in (new, old))
        yield _at_most(name, "", one, other, patient, most)
    ran = np.array([bool(old["suitable"] and new["suitable"]) for old, new in pairs.images])
    seconds = np.array([[max(r["seconds"], 1e-6) for r in pair] for pair in pairs.images])[ran]
    yield _latency(seconds, patient[ran], limits.latency)


def _latency(seconds: NDArray[np.float64], patient: NDArray[np.intp], most: float) -> Figure:
    """Compare how long the same image took: the geometric mean of the ratios."""
    limit, count = f"at most {most:g} times", len(seconds)
    if count < 2:
        return Figure("latency", "", None, None, None, None, None, limit, count, "inconclusive")
    ratio = np.log(seconds[:, 1] / seconds[:, 0])
    mean = float(ratio.mean())
    error = clustered.standard_error((ratio - mean) / count, patient)
    low, high = math.exp(mean - Z * error), math.exp(mean + Z * error)
    judged: Judged = (
        "inconclusive" if not error else "pass" if high <= most else "fail" if low > most else "inconclusive"
    )
    old, new = (float(np.median(seconds[:, side])) for side in (0, 1))
    return Figure("latency", "", old, new, math.exp(mean), low, high, limit, count, judged)


def _scores(pairs: Paired, limits: Limits) -> Iterable[Figure]:
    """How the probabilities and the flags of each finding moved, study by study."""
    studies = list(pairs.studies)
    patient = _patients(pairs, studies)
    for finding in _findings(pairs):
        said = [[_of(side, finding) for side in pairs.studies[study]] for study in studies]
        both = np.array([old is not None and new is not None for old, new in said])
        chosen = [(old, new) for old, new in said if old is not None and new is not None]
        old, new = (np.array([float(pair[side]["probability"]) for pair in chosen]) for side in (0, 1))
        one, other = _mean(new, both), _mean(old, both)
        yield _within("score shift", finding, one, other, patient, limits.shift, len(chosen))
        flags = [np.array([bool((pair[side] or {}).get("flagged")) for pair in said]) for side in (0, 1)]
        one, other = (clustered.share(flags[side], both, patient) for side in (1, 0))
        yield _within("flagged", finding, one, other, patient, limits.flags, len(chosen))


def _mean(values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> Estimate:
    influence = np.zeros(chosen.size)
    mean = float(values.mean()) if values.size else math.nan
    influence[chosen] = (values - mean) / max(1, values.size)
    return Estimate(mean, influence, 0, Interval(mean, math.nan, math.nan))


def _readers(pairs: Paired, limits: Limits) -> Iterable[Figure]:
    """Agreement with what readers signed, and sensitivity; each pair of study and finding is one case."""
    cases: list[tuple[str, str, bool, Said, Said]] = []
    for study, labels in pairs.truth.items():
        for finding, there in labels.items():
            old, new = (_of(side, finding) for side in pairs.studies[study])
            if old is not None and new is not None:
                cases.append((study, finding, there, old, new))
    if not cases:
        yield Figure(
            "agreement", "", None, None, None, None, None, f"at least -{limits.agreement:g}", 0, "inconclusive"
        )
        return
    patient = _patients(pairs, (case[0] for case in cases))
    present = np.array([case[2] for case in cases])
    flags = [np.array([bool(said["flagged"]) for said in side]) for side in zip(*(c[3:] for c in cases), strict=True)]
    right = [flag == present for flag in flags]
    blind = np.array([case[0] in pairs.blind for case in cases])
    drew = np.array([case[0] in pairs.drew for case in cases])
    finding_of = np.array([case[1] for case in cases])
    every = np.ones(len(cases), dtype=bool)

    def compare(
        name: str, hits: list[NDArray[np.bool_]], chosen: NDArray[np.bool_], most: float, **more: Any
    ) -> Figure:
        one, other = (clustered.share(hits[side], chosen, patient) for side in (1, 0))
        return _at_least(name, more.pop("finding", ""), one, other, patient, most, int(chosen.sum()), **more)

    yield compare("agreement", right, every, limits.agreement)
    for name, chosen in (("agreement, read blind", blind), ("agreement, challenger shown", drew)):
        if chosen.any():
            yield compare(name, right, chosen, limits.agreement, held=False)
    ill = present & ~np.isin(finding_of, list(NORMAL))
    yield compare("sensitivity", flags, ill, limits.sensitivity, least=limits.positives)
    for finding in sorted(set(finding_of[present])):
        chosen = present & (finding_of == finding)
        enough = finding not in NORMAL and int(chosen.sum()) >= limits.positives
        yield compare("sensitivity", flags, chosen, limits.sensitivity, finding=finding, held=enough)
    yield from _areas(cases, finding_of, present, patient)


def _areas(
    cases: Sequence[tuple[str, str, bool, Said, Said]],
    finding_of: NDArray[Any],
    present: NDArray[np.bool_],
    patient: NDArray[np.intp],
) -> Iterable[Figure]:
    """The areas under the ROC curves, for people: where readers only touch what was flagged they say little."""
    scores = [np.array([s["probability"] for s in side], float) for side in zip(*(c[3:] for c in cases), strict=True)]
    for finding in sorted(set(finding_of)):
        chosen = finding_of == finding
        one, other = (clustered.area(present, scores[side], chosen, patient) for side in (1, 0))
        if not math.isnan(one.value):
            found = clustered.contrast(one, other, patient)
            yield _figure("AUROC", finding, one, other, found, "", int(chosen.sum()), "inconclusive", held=False)


def _findings(pairs: Paired) -> list[str]:
    return sorted({f["finding"] for both in pairs.studies.values() for side in both for f in side["findings"]})


def _of(merged: dict[str, Any], finding: str) -> dict[str, Any] | None:
    return next((f for f in merged["findings"] if f["finding"] == finding), None)


def _at_most(name: str, finding: str, one: Estimate, other: Estimate, patient: NDArray[np.intp], most: float) -> Figure:
    found, count = clustered.contrast(one, other, patient), int(patient.size)
    judged: Judged = "inconclusive"
    if not math.isnan(found.low):
        judged = "pass" if found.high <= most else "fail" if found.low > most else "inconclusive"
    return _figure(name, finding, one, other, found, f"at most +{most:g}", count, judged)


def _at_least(
    name: str,
    finding: str,
    one: Estimate,
    other: Estimate,
    patient: NDArray[np.intp],
    most: float,
    count: int,
    *,
    least: int = 1,
    held: bool = True,
) -> Figure:
    found = clustered.contrast(one, other, patient)
    judged: Judged = "inconclusive"
    if not math.isnan(found.low) and count >= least:
        judged = "pass" if found.low >= -most else "fail" if found.high < -most else "inconclusive"
    return _figure(name, finding, one, other, found, f"at least -{most:g}", count, judged, held=held)


def _within(
    name: str, finding: str, one: Estimate, other: Estimate, patient: NDArray[np.intp], most: float, count: int
) -> Figure:
    found = clustered.contrast(one, other, patient)
    if math.isnan(found.low) and count >= _ENOUGH:  # all moved by the same, or not at all: a copy does
        found = Contrast(found.value, found.value, found.value, math.nan)
    judged: Judged = "inconclusive"
    if not math.isnan(found.low):
        inside, outside = -most <= found.low and found.high <= most, found.low > most or found.high < -most
        judged = "pass" if inside else "fail" if outside else "inconclusive"
    return _figure(name, finding, one, other, found, f"within ±{most:g}", count, judged)


def _figure(
    name: str,
    finding: str,
    one: Estimate,
    other: Estimate,
    found: Contrast,
    limit: str,
    count: int,
    judged: Judged,
    *,
    held: bool = True,
) -> Figure:
    old, new, value, low, high = (
        None if math.isnan(number) else float(number)
        for number in (other.value, one.value, found.value, found.low, found.high)
    )
    return Figure(name, finding, old, new, value, low, high, limit, count, judged, held)
