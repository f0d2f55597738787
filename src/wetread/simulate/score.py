"""How right the server and its readers were about the studies of a simulation, before and after a drift.

Everything is fetched by the interface: what the models said of each study, and what was signed. Each study is a patient
of its own. AUROC has the interval of the bootstrap, rates that of Wilson.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import httpx
import numpy as np

from wetread.errors import ClinicError, DeniedError, hide
from wetread.evaluate import intervals, metrics
from wetread.evaluate.intervals import Interval
from wetread.findings import HARMLESS
from wetread.simulate.perception import NORMAL
from wetread.simulate.truth import ABNORMAL, Case, Truth

_PAGE = 500
_EARLIER = timedelta(minutes=10)  # the server's clock may be slow


@dataclass(frozen=True)
class Found:
    """One study as the server has it: what `GET /api/v1/studies/{study}` answers, and the case that it is."""

    case: Case
    study: Mapping[str, Any]

    def probability(self, model: str, finding: str) -> float | None:
        """Return the model's probability of a finding, or of any abnormality."""
        if finding == ABNORMAL:
            value = self.study["abnormal"].get(model)
            return None if value is None else float(value)
        return next((float(f["probability"]) for f in self._of(model) if f["finding"] == finding), None)

    def flagged(self, model: str, finding: str) -> bool | None:
        """Return whether the model flagged a finding, or any abnormality; None where it said nothing."""
        said = self._of(model)
        if not said:
            return None
        if finding == ABNORMAL:
            return any(f["flagged"] for f in said if f["finding"] not in HARMLESS)
        return next((bool(f["flagged"]) for f in said if f["finding"] == finding), None)

    def _of(self, model: str) -> list[Mapping[str, Any]]:
        return [f for f in self.study["findings"] if f["model"] == model]

    @property
    def models(self) -> set[str]:
        """Names of the models that said something."""
        return {f["model"] for f in self.study["findings"]} | set(self.study["abnormal"])

    def read(self, finding: str) -> bool | None:
        """Return whether the newest signature says that a finding is there; None where it does not say."""
        review = self.study["review"]
        if review is None:
            return None
        if finding == ABNORMAL:
            return not review["normal"]
        calls = {f["finding"]: f for f in sorted(self.study["findings"], key=lambda f: f["probability"])}
        for answer in review["findings"]:
            if answer["finding"] == finding:
                if answer["answer"] in ("added", "unsure"):
                    return True if answer["answer"] == "added" else None
                told = calls.get(finding)
                return None if told is None else (answer["answer"] == "agree") == (told["call"] != "unlikely")
        return False  # neither a model named it nor did the reader add it


def fetch(client: httpx.Client, truth: Truth, *, progress: Callable[[], object] | None = None) -> list[Found]:
    """Fetch the studies of a simulation; those that the server does not have are left out.

    Raises
    ------
    DeniedError, ClinicError
        When the server does not let us in, or does not answer.
    """
    cases, found = truth.by_key(), []
    sent = [datetime.fromisoformat(case.sent_at) for case in cases.values()]
    since = (min(sent, default=truth.clock.began) - _EARLIER).isoformat()
    known = {case.study for case in cases.values() if case.study}
    # Where every answer named its study there is no need to look for them in the list.
    all_named = all(case.study for case in cases.values())
    listed = known if all_named else set(_listed(client, since))
    for key in sorted(listed):
        study = _get(client, f"/api/v1/studies/{key}")
        case = None if study is None else cases.get(study["study_uid"]) or cases.get(key)
        if study is not None and case is not None:
            found.append(Found(case, study))
        if progress is not None:
            progress()
    return found


def _listed(client: httpx.Client, since: str) -> Iterable[str]:
    for status in (None, "reviewed"):
        after = None
        while True:
            asked = {"limit": _PAGE, "since": since, "status": status, "after": after}
            page = _get(client, "/api/v1/worklist", {k: v for k, v in asked.items() if v is not None})
            if page is None:
                break
            yield from (row["study"] for row in page["studies"])
            after = page["next"]
            if after is None:
                break


def _get(client: httpx.Client, path: str, params: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    where = hide(str(client.base_url))
    try:
        response = client.get(path, params=params)
    except httpx.HTTPError as error:
        raise ClinicError(f"{where}: no server there ({error}); start `wetread serve`") from None
    if response.status_code == 404:
        return None
    if response.status_code in (401, 403):
        raise DeniedError(f"{where}: token not accepted; make one with `wetread token`")
    if response.status_code != 200:
        raise ClinicError(f"{where}: {path} answered HTTP {response.status_code}; look into its log")
    return response.json()  # type: ignore[no-any-return]


def score(truth: Truth, found: Sequence[Found]) -> dict[str, Any]:
    """Return the figures of a simulation, ready for JSON.

    Parameters
    ----------
    truth : Truth
    found : sequence of Found
        Of `fetch`.

    Returns
    -------
    dict
        `studies` counts; `phases` has, for all studies and for those before and after a drift, each model's figures
        by finding (`abnormal` first), the readers' by finding and by reader, and the waits in simulated minutes. `days`
        has the curve over simulated days.
    """
    outcomes: dict[str, int] = defaultdict(int)
    for case in truth.cases:
        outcomes[case.outcome] += 1
    studies = {
        "sent": len(truth.cases),
        "accepted": len({case.study_uid or case.study for case in truth.cases if case.outcome == "accepted"}),
        "found": len(found),
        "analysed": sum(bool(each.models) for each in found),
        "signed": sum(each.study["review"] is not None for each in found),
        "outcomes": dict(outcomes),
    }
    phases = {"all": found} | {
        phase: [each for each in found if each.case.phase == phase]
        for phase in ("before", "after")
        if any(each.case.phase == phase for each in found)
    }
    return {
        "studies": studies,
        "phases": {name: _phase(truth, members) for name, members in phases.items()},
        "days": _days(truth, found),
    }


def _days(truth: Truth, found: Sequence[Found]) -> list[dict[str, Any]]:
    """Return for each simulated day what came, what the models said of it on the average, and how long it waited."""
    by_day: dict[str, list[Found]] = defaultdict(list)
    for each in found:
        by_day[each.case.at[:10]].append(each)
    rows = []
    for day, members in sorted(by_day.items()):
        scores: dict[str, list[float]] = defaultdict(list)
        for each in members:
            for model, chance in each.study["abnormal"].items():
                scores[model].append(float(chance))
        rows.append({
            "day": day,
            "studies": len(members),
            "abnormal": sum(each.case.abnormal for each in members),
            "mean_score": {model: round(float(np.mean(chances)), 4) for model, chances in sorted(scores.items())},
            "signed": sum(each.study["review"] is not None for each in members),
            "wait_minutes": _waits(truth, members),
        })  # fmt: skip
    return rows


def _phase(truth: Truth, found: Sequence[Found]) -> dict[str, Any]:
    names = {name: None for each in found for name in each.case.findings if name not in NORMAL}
    findings = [ABNORMAL, *names]
    models = sorted({model for each in found for model in each.models})
    readers = sorted({each.study["review"]["reader"] for each in found if each.study["review"] is not None})
    by_reader = {
        r: [e for e in found if e.study["review"] is not None and e.study["review"]["reader"] == r] for r in readers
    }
    return {
        "studies": len(found),
        "abnormal": sum(each.case.abnormal for each in found),
        "models": {
            model: {finding: figures for finding in findings if (figures := _model(found, model, finding))}
            for model in models
        },
        "readers": {finding: figures for finding in findings if (figures := _rates(found, finding, Found.read))},
        "by_reader": {reader: _rates(members, ABNORMAL, Found.read) for reader, members in sorted(by_reader.items())},
        "wait_minutes": _waits(truth, found),
    }


def _label(case: Case, finding: str) -> int | None:
    return case.abnormal if finding == ABNORMAL else case.findings.get(finding)


def _model(found: Sequence[Found], model: str, finding: str) -> dict[str, Any]:
    pairs = [
        (label, probability)
        for each in found
        if (label := _label(each.case, finding)) is not None
        and (probability := each.probability(model, finding)) is not None
    ]
    figures = _rates(found, finding, lambda each, name: each.flagged(model, name))
    if not figures or not pairs:
        return figures
    labels, scores = np.array(pairs, float).T
    why = metrics.why_undefined(labels)
    area = None if why else intervals.auroc(labels, scores, np.arange(len(labels)))
    return figures | {"auroc": None if area is None else _interval(area)} | ({"reason": why} if why else {})


def _rates(found: Sequence[Found], finding: str, call: Callable[[Found, str], bool | None]) -> dict[str, Any]:
    """Return sensitivity and specificity of calls; nothing when nothing was called."""
    pairs = [
        (label, said)
        for each in found
        if (label := _label(each.case, finding)) is not None and (said := call(each, finding)) is not None
    ]
    if not pairs:
        return {}
    positives = [said for label, said in pairs if label]
    negatives = [not said for label, said in pairs if not label]
    return {
        "positives": len(positives),
        "negatives": len(negatives),
        "sensitivity": _share(positives),
        "specificity": _share(negatives),
    }


def _share(right: Sequence[bool]) -> list[float] | None:
    if not right:
        return None
    low, high = intervals.wilson(sum(right), len(right))
    return _interval(Interval(sum(right) / len(right), float(low), float(high)))


def _interval(found: Interval) -> list[float] | None:
    """Return value and limits; a value without limits (all told apart) has itself as both."""
    if np.isnan(found.value):
        return None
    limits = (found.low, found.high) if not np.isnan(found.low) else (found.value, found.value)
    return [round(float(value), 4) for value in (found.value, *limits)]


def _waits(truth: Truth, found: Sequence[Found]) -> dict[str, Any]:
    """Return the waits from the server's receipt to the first signature by class, in simulated minutes."""
    waits: dict[str, list[float]] = defaultdict(list)
    for each in found:
        signed = [r["signed_at"] for r in each.study["reviews"] if r["state"] == "signed" and r["signed_at"]]
        if signed:
            wait = datetime.fromisoformat(min(signed)) - datetime.fromisoformat(each.study["received_at"])
            waits[each.study["priority"]].append(truth.clock.minutes(wait))
            waits["abnormal" if each.case.abnormal else "normal"].append(truth.clock.minutes(wait))
    return {
        name: {
            "studies": len(values),
            "mean": round(float(np.mean(values)), 2),
            "p50": round(float(np.median(values)), 2),
        }
        for name, values in sorted(waits.items())
    }


def table(figures: Mapping[str, Any]) -> str:
    """Return the figures as Markdown: a row for each phase, model or readers, and finding."""
    lines = [
        "| phase | who | finding | studies with, without | AUROC | sensitivity | specificity |",
        "|---|---|---|---|---|---|---|",
    ]
    for phase, found in figures["phases"].items():
        rows = [(model, name, f) for model, named in found["models"].items() for name, f in named.items()]
        rows += [("readers", name, f) for name, f in found["readers"].items()]
        rows += [(reader, ABNORMAL, f) for reader, f in found["by_reader"].items()]
        for who, name, f in rows:
            cells = (_words(f.get("auroc")), _words(f["sensitivity"]), _words(f["specificity"]))
            lines.append(f"| {phase} | {who} | {name} | {f['positives']}, {f['negatives']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _words(found: Sequence[float] | None) -> str:
    return "–" if found is None else f"{found[0]:.3f} ({found[1]:.3f} to {found[2]:.3f})"
