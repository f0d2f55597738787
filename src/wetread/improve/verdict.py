"""The verdict on a challenger: what both packages said of the same studies, and what readers said of them.

Everything is paired: only studies of this stage that both analysed count, and a difference has the spread of the
differences, over patients (`evaluate.clustered`). Each figure must keep a limit with its whole interval to pass, and
breaks it when the whole interval is beyond (`margins`); anything else, and too few studies, is *inconclusive*, never a
pass. One figure that is broken rolls back, all that pass promote, anything else holds.

In shadow the readers have seen the champion's word and none of the challenger's: their answers are anchored on the
champion, which makes a challenger that is right where the champion is wrong look worse than it is. What was read blind
is told apart. In canary some have seen the one and some the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wetread.clinic import store
from wetread.clinic.deployments import CANARY, EVERYWHERE, Slot
from wetread.clinic.figures import walk
from wetread.clinic.store import Store
from wetread.errors import Code, ConfigError
from wetread.evaluate import clustered
from wetread.evaluate.clustered import Contrast, Estimate
from wetread.evaluate.intervals import Interval
from wetread.findings import NORMAL
from wetread.improve import browsing
from wetread.improve.browsing import Pages
from wetread.improve.margins import Figure, Limits, Margin, at_least, at_most, between, figure, within, words
from wetread.improve.paired import Paired, Said, gather

PROMOTE, HOLD, ROLL_BACK = "promote", "hold", "roll_back"
ANCHORED = (
    "Readers saw the champion's word before they answered, and none of the challenger's: agreement is anchored on the "
    "champion."
)
_ENOUGH = 20  # patients, before the spread of scores, flags and times among them is believed
_NOTHING = Contrast(math.nan, math.nan, math.nan, math.nan)
_TOLD = Margin(-math.inf, math.inf, "")
ANCHORED_CANARY = "Readers saw the word of the model that their study drew before they answered: agreement is anchored."


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
    look : int
        The how manieth verdict in this stage it is, of those that had studies enough to promote.
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
    look: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return it for the record."""
        return asdict(self) | {"at": self.at.isoformat(), "since": self.since.isoformat()}

    def summary(self) -> dict[str, Any]:
        """Return what the pages tell."""
        kept = {"id": self.id, "at": self.at.isoformat(), "outcome": self.outcome, "reasons": list(self.reasons[:5])}
        return kept | {"studies": self.studies, "reviewed": self.reviewed, "look": self.look}


def judge(database: Store, slot: Slot, limits: Limits, site: str = EVERYWHERE, browsers: Path | None = None) -> Verdict:
    """Weigh the challenger of a slot against its champion.

    Parameters
    ----------
    slot : Slot
        With a challenger.
    site : str
        Only its studies; by default those of all sites that the challenger concerns.
    browsers : Path, optional
        What browsers measured of the pages; see `browsing`. What cannot be read holds a canary, as no report does: it
        must not stand in the way of a roll back.
    """
    row, champion = slot.challenger, slot.champion
    assert row is not None
    pages = _pages(limits, row.since, browsers) if row.stage == CANARY else None  # in shadow no page shows what it says
    with database.read() as connection:
        walk(connection)
        pairs = gather(connection, row, champion.model, row.site or site, limits.most) if champion else Paired()
    figures = tuple(_figures(pairs, limits))
    look = _look(row.verdict or {}, pairs, limits)
    outcome, reasons = decide(pairs, figures, limits, champion is not None, pages, look)
    notes = [ANCHORED_CANARY if row.stage == CANARY else ANCHORED]
    notes += ["Analyses in shadow come after all others in the queue; their latency counts from their own beginning."]
    if limits.looks > 1:
        notes += [f"Look {look} of {limits.looks}: each is judged so that all together keep 95 %."]
    return Verdict(
        store.new_id(), store.now(), row.id, row.stage, slot.name, row.site or site, row.model,
        champion.model if champion else None, row.since, len(pairs.studies), len(pairs.images), len(pairs.truth),
        len(pairs.blind), outcome, tuple(reasons), figures, tuple(notes), limits.model_dump(), pages, look,
    )  # fmt: skip


def _pages(limits: Limits, since: datetime, browsers: Path | None) -> Pages | None:
    try:
        return browsing.judge(limits.browsers, since, browsers)
    except ConfigError as error:
        return Pages(None, {}, (f"pages: {error}",))


def _look(before: Mapping[str, Any], pairs: Paired, limits: Limits) -> int:
    """Return the how manieth look this is, after the last verdict's summary; the same studies again are no new one."""
    seen = len(pairs.studies), len(pairs.truth)
    past = int(before.get("look", 0))
    if seen[0] < limits.studies or seen[1] < limits.reviewed:
        return past
    return past if past and seen == (before["studies"], before["reviewed"]) else past + 1


def decide(
    pairs: Paired,
    figures: Sequence[Figure],
    limits: Limits,
    compares: bool = True,
    pages: Pages | None = None,
    look: int = 1,
) -> tuple[Literal["promote", "hold", "roll_back"], list[str]]:
    """Return what the figures ask for, and why."""
    if not compares:
        return "hold", ["there is no champion to compare it with; a person has to decide"]
    held = [each for each in figures if each.held]
    if broken := [words(each) for each in held if each.verdict == "fail"]:
        return "roll_back", broken
    few = list(pages.reasons) if pages else []  # which say nothing about the model, and roll nothing back
    for have, want, of in (
        (len(pairs.studies), limits.studies, "studies that both analysed"),
        (len(pairs.truth), limits.reviewed, "of them signed"),
    ):
        if have < want:
            few.append(f"{have} {of}, {want} wanted")
    if 1 < limits.looks < look:
        few.append(f"this is look {look}, {limits.looks} were planned: a person has to decide")
    if open_ := [words(each) for each in held if each.verdict == "inconclusive"]:
        return "hold", few + open_
    if few:
        return "hold", few
    return "promote", ["all figures keep their limits", *([f"so do the pages, opened at {pages.at}"] if pages else [])]


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
        "| figure | finding | champion | challenger | difference | interval (95 %) | limit | cases | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for f in said.figures:
        values = ("" if value is None else f"{value:.3g}" for value in (f.champion, f.challenger, f.value))
        lines.append(
            f"| {f.name} | {f.finding} | {' | '.join(values)} | {between(f)} | {f.limit} | {f.count} | "
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
        found = clustered.paired(new, old, every, patient)
        yield figure(name, "", old.mean(), new.mean(), found, at_most(most), limits.looks, len(every))
    ran = np.array([bool(old["suitable"] and new["suitable"]) for old, new in pairs.images])
    seconds = np.array([[max(r["seconds"], 1e-6) for r in pair] for pair in pairs.images])[ran]
    yield _latency(seconds, patient[ran], limits)


def _latency(seconds: NDArray[np.float64], patient: NDArray[np.intp], limits: Limits) -> Figure:
    """Compare how long the same image took: the geometric mean of the ratios."""
    margin = Margin(-math.inf, math.log(limits.latency), f"at most {limits.latency:g} times")
    if not len(seconds):
        return figure("latency", "", math.nan, math.nan, _NOTHING, margin, limits.looks, 0)
    ratio = np.log(seconds[:, 1] / seconds[:, 0])
    mean = _mean(ratio, np.ones(len(ratio), dtype=bool))
    found = clustered.contrast(mean, replace(mean, value=0.0, influence=np.zeros(len(ratio))), patient)
    old, new = (float(np.median(seconds[:, side])) for side in (0, 1))
    enough = len(np.unique(patient)) >= _ENOUGH
    logs = figure("latency", "", old, new, found, margin, limits.looks, len(ratio), enough=enough)
    value, low, high = (None if number is None else math.exp(number) for number in (logs.value, logs.low, logs.high))
    return replace(logs, value=value, low=low, high=high)


def _scores(pairs: Paired, limits: Limits) -> Iterable[Figure]:
    """How the probabilities and the flags of each finding moved, study by study."""
    studies = list(pairs.studies)
    patient = _patients(pairs, studies)
    for finding in _findings(pairs):
        said = [[_of(side, finding) for side in pairs.studies[study]] for study in studies]
        both = np.array([old is not None and new is not None for old, new in said])
        chosen = [(old, new) for old, new in said if old is not None and new is not None]
        old, new = (np.array([float(pair[side]["probability"]) for pair in chosen]) for side in (0, 1))
        enough = len(np.unique(patient[both])) >= _ENOUGH
        means = _mean(new, both), _mean(old, both)
        found = clustered.contrast(*means, patient)
        if enough and math.isnan(found.low):  # all moved by the same, or not at all: a copy does
            found = Contrast(found.value, found.value, found.value, math.nan)
        moved = within(limits.shift)
        yield figure(
            "score shift", finding, means[1].value, means[0].value, found, moved, limits.looks, len(chosen),
            enough=enough,
        )  # fmt: skip
        old, new = (np.array([bool((pair[side] or {}).get("flagged")) for pair in said]) for side in (0, 1))
        found, moved = clustered.paired(new, old, both, patient), within(limits.flags)
        yield figure(
            "flagged", finding, _share(old, both), _share(new, both), found, moved, limits.looks, len(chosen),
            enough=enough,
        )  # fmt: skip


def _share(hits: NDArray[np.bool_], chosen: NDArray[np.bool_]) -> float:
    return float(hits[chosen].mean()) if chosen.any() else math.nan


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
        yield figure("agreement", "", math.nan, math.nan, _NOTHING, at_least(limits.agreement), limits.looks, 0)
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
        name: str, hits: list[NDArray[np.bool_]], chosen: NDArray[np.bool_], most: float,
        finding: str = "", *, least: int = 1, held: bool = True,
    ) -> Figure:  # fmt: skip
        found, count = clustered.paired(hits[1], hits[0], chosen, patient), int(chosen.sum())
        old, new = (_share(side, chosen) for side in hits)
        margin, enough = at_least(most), count >= least
        return figure(name, finding, old, new, found, margin, limits.looks, count, enough=enough, held=held)

    yield compare("agreement", right, every, limits.agreement)
    for name, chosen in (("agreement, read blind", blind), ("agreement, challenger shown", drew)):
        if chosen.any():
            yield compare(name, right, chosen, limits.agreement, held=False)
    ill = present & ~np.isin(finding_of, list(NORMAL))  # which nobody misses
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
            yield figure(
                "AUROC", finding, other.value, one.value, found, _TOLD, 1, int(chosen.sum()), enough=False, held=False
            )


def _findings(pairs: Paired) -> list[str]:
    return sorted({f["finding"] for both in pairs.studies.values() for side in both for f in side["findings"]})


def _of(merged: dict[str, Any], finding: str) -> dict[str, Any] | None:
    return next((f for f in merged["findings"] if f["finding"] == finding), None)
