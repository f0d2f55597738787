"""What an experiment found: the wait of critical studies in either order, and all that belongs beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wetread.clinic.experiments import AI, ARRIVAL, Experiment
from wetread.clinic.figures import Share, Spread
from wetread.clinic.priority import ORDER
from wetread.evaluate import clustered, plots
from wetread.improve import record
from wetread.improve.experiment import Design, guard, saved
from wetread.improve.experiment_studies import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGES = {
    "acquired to received": ("acquired", "received"),
    "received to analysed": ("received", "analysed"),
    "received to opened": ("received", "opened"),
    "opened to signed": ("opened", "signed"),
    "received to signed": ("received", "signed"),
}
_MOST_READERS = 50


def report(experiment: Experiment, found: Sequence[Study], *, over: bool, interim: bool = False) -> dict[str, Any]:
    """Return the report, ready for JSON.

    Parameters
    ----------
    over : bool
        Whether it has ended; before, effects are left out: who looks at each step sees what is not there.
    interim : bool
        Tell them all the same, marked as such.
    """
    design = Design.model_validate(experiment.plan)
    counted, critical = [study for study in found if not study.early], set(design.findings)
    blocks = {arm: len({study.block for study in counted if study.arm == arm}) for arm in (AI, ARRIVAL)}
    told = over or interim
    readers = sorted({study.reader for study in counted if study.reader})[:_MOST_READERS]
    groups = {
        "critical, as signed": [study for study in counted if study.truth & critical],
        "all": counted,
        "not critical": [study for study in counted if not study.truth & critical],
        **{
            f"finding: {f}": [s for s in counted if f in s.truth] for f in sorted({f for s in counted for f in s.truth})
        },
        **{f"class: {name}": [study for study in counted if study.priority == name] for name in map(str, ORDER)},
        **{f"reader: {name}": [study for study in counted if study.reader == name] for name in readers},
    }
    values: dict[str, Any] = {
        "experiment": experiment.id,
        "site": experiment.site,
        "plan": experiment.plan,
        "started_at": experiment.started_at.isoformat(),
        "ended_at": experiment.ended_at.isoformat() if experiment.ended_at else None,
        "ended": experiment.ended,
        "reason": experiment.reason,
        "state": "over" if over else "under way",
        "blocks": {"planned": design.blocks, "with studies": blocks},
        "studies": {arm: sum(study.arm == arm for study in counted) for arm in (AI, ARRIVAL)},
        "left_out": len(found) - len(counted),
        "clocks": {
            "studies": len(counted),
            "acquired": sum(study.acquired is not None for study in counted),
            "ahead": sum(study.ahead for study in counted),
            "zone": design.zone,
        },
        "guards": guard(experiment, found),
        "latency": {arm: _latency([s for s in counted if s.arm == arm]) for arm in (AI, ARRIVAL)},
        "accuracy": {arm: _accuracy([s for s in counted if s.arm == arm], critical) for arm in (AI, ARRIVAL)},
        "agreement": {arm: _agreement([s for s in counted if s.arm == arm]) for arm in (AI, ARRIVAL)},
    }
    if told:
        values["interim"] = not over
        values["waits"] = {name: _waits(chosen) for name, chosen in groups.items()}
        values["primary"] = _minutes_saved(groups["critical, as signed"])
        values["complete"] = experiment.ended == "complete" or min(blocks.values()) >= design.blocks // 2
    return values


def _waits(chosen: Sequence[Study]) -> dict[str, Any]:
    """Return each stage by arm, and by how much AI's order shortens it."""
    found: dict[str, Any] = {}
    for name, ends in STAGES.items():
        spreads = {arm: Spread.of(_minutes([s for s in chosen if s.arm == arm], *ends)) for arm in (AI, ARRIVAL)}
        means = {
            arm: float(np.mean(values)) if (values := _minutes([s for s in chosen if s.arm == arm], *ends)) else None
            for arm in (AI, ARRIVAL)
        }
        found[name] = {
            arm: {"count": spread.count, "mean": means[arm], "median": spread.median, "p95": spread.p95}
            for arm, spread in spreads.items()
        } | {"saved": _interval(saved(chosen, *ends))}
    return found


def _minutes_saved(critical: Sequence[Study]) -> dict[str, Any]:
    effect = saved(critical)
    per_day = _a_day([study for study in critical if study.arm == AI])
    return {
        "what": "minutes from received to signed of critical studies, order of arrival minus order of AI",
        "saved": _interval(effect),
        "critical_a_day": per_day,
        "saved_a_day": None if math.isnan(effect.value) or per_day is None else effect.value * per_day,
    }


def _a_day(studies: Sequence[Study]) -> float | None:
    """Return how many came on a day of the arm's own blocks: half of the time was the other arm's."""
    if len(studies) < 2:
        return None
    days = (studies[-1].received - studies[0].received).total_seconds() / 86_400
    return 2 * len(studies) / days if days > 0 else None


def _accuracy(studies: Sequence[Study], critical: set[str]) -> dict[str, Any]:
    """Return how often AI flagged what readers saw and what they denied; they had its word unless they read blind."""
    signed = [study for study in studies if study.signed]
    findings = sorted({finding for study in signed for finding in study.answered & study.flagged | study.truth})
    each = {}
    for finding in findings:
        seen = [study for study in signed if finding in study.truth]
        denied = [study for study in signed if finding in study.answered - study.truth]
        each[finding] = {
            "sensitivity": _share(Share(sum(finding in s.flagged for s in seen), len(seen))),
            "specificity": _share(Share(sum(finding not in s.flagged for s in denied), len(denied))),
        }
    raised = [study for study in signed if study.flagged & critical]
    return {
        "findings": each,
        "false_alerts": _share(Share(sum(not study.truth & critical for study in raised), len(raised))),
    }


def _agreement(studies: Sequence[Study]) -> dict[str, Any]:
    """Return how often readers agreed with what AI called; where it was unsure itself nobody can.

    The interval is over blocks: several answers are of one study, and several studies of one reader's shift.
    """
    said = [
        (finding, answer == "agree", study.block)
        for study in studies for finding, (answer, call) in study.answers.items()
        if call in ("likely", "unlikely") and answer in ("agree", "disagree")
    ]  # fmt: skip
    agree = np.array([agreed for _, agreed, _ in said], bool)
    name = np.array([finding for finding, *_ in said], np.str_)
    block = np.unique([block for *_, block in said], return_inverse=True)[1].astype(np.intp)

    def share(chosen: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any]:
        found = clustered.share(agree, chosen, block).interval
        return {"part": int(agree[chosen].sum()), "whole": int(chosen.sum())} | _interval(found)

    findings = {finding: share(name == finding) for finding in sorted({finding for finding, *_ in said})}
    return {"all": share(np.ones(len(said), bool)), "findings": findings}


def _latency(studies: Sequence[Study]) -> dict[str, Any]:
    """Return how long models computed for a study, and how long its word took beside that; in s."""
    seen = [study for study in studies if not math.isnan(study.seconds)]
    return {
        name: {"count": spread.count, "median": spread.median, "p95": spread.p95}
        for name, spread in {
            "model_s": Spread.of(study.seconds for study in seen),
            "waited_s": Spread.of(study.waited for study in seen),
        }.items()
    }


def _share(share: Share) -> dict[str, Any]:
    low, high = share.interval or (None, None)
    return {"part": share.part, "whole": share.whole, "value": share.value, "low": low, "high": high}


def _interval(found: Any) -> dict[str, float | None]:
    return {
        name: None if math.isnan(value) else value
        for name, value in asdict(found).items()
        if name in ("value", "low", "high")
    }


def _minutes(studies: Iterable[Study], since: str, until: str) -> list[float]:
    return [value for study in studies if not math.isnan(value := study.minutes(since, until))]


# --- for people -------------------------------------------------------------------------------------------------------


def words(values: dict[str, Any]) -> str:
    """Return a report as Markdown."""
    blocks, planned = values["blocks"]["with studies"], values["blocks"]["planned"]
    lines = [
        f"# Experiment at {values['site']}: {values['state']}",
        "",
        f"Order of AI against order of arrival, {planned} blocks planned; {blocks['ai']} of AI and {blocks['arrival']} "
        f"of arrival have studies ({values['studies']['ai']} and {values['studies']['arrival']} studies, "
        f"{values['left_out']} left out by the wash-out). {values['reason']}".rstrip(),
        "",
    ]
    lines += [f"- **Guard**: {breach}" for breach in values["guards"]]
    if "primary" not in values:
        lines += ["Effects are told when it is over.", ""]
    else:
        lines += _effects(values)
    lines += [
        "## How long AI took",
        "",
        "| order | models computed: median, p95 (studies) | beside that: queue, further images |",
        "|---|---|---|",
    ]
    for arm, found in values["latency"].items():
        lines.append(f"| {arm} | {_seconds_text(found['model_s'])} | {_seconds_text(found['waited_s'])} |")
    clocks = values["clocks"]
    lines += [
        "",
        f"Of {clocks['studies']} studies {clocks['acquired']} say at what time they were acquired (in the zone "
        f"{clocks['zone']} where they say none). {clocks['ahead']} of these say so of a time after they were received: "
        "that scanner's clock is ahead, and they are left out of *acquired to received*.",
        "",
        "## What AI said and readers signed",
        "",
        "| order | finding | sensitivity | specificity |",
        "|---|---|---|---|",
    ]
    for arm, found in values["accuracy"].items():
        for finding, each in found["findings"].items():
            cells = [_percent(each[name]) for name in ("sensitivity", "specificity")]
            lines.append(f"| {arm} | {finding} | {cells[0]} | {cells[1]} |")
        lines.append(f"| {arm} | *false alerts* | {_percent(found['false_alerts'])} | |")
    lines += ["", "## Readers agreed with AI", "", "| order | finding | agreed |", "|---|---|---|"]
    for arm, found in values["agreement"].items():
        for finding, each in {"*all*": found["all"], **found["findings"]}.items():
            lines.append(f"| {arm} | {finding} | {_percent(each)} |")
    return "\n".join([*lines, ""])


def _effects(values: dict[str, Any]) -> list[str]:
    primary = values["primary"]
    marked = " (interim: the experiment is not over, do not conclude)" if values["interim"] else ""
    if not values["interim"] and not values["complete"]:
        marked = " (ended before its planned size)"
    lines = [f"## Minutes saved{marked}", "", f"{primary['what']}: **{_minutes_text(primary['saved'])}**."]
    if primary["saved_a_day"] is not None:
        lines.append(
            f"With {primary['critical_a_day']:.1f} such studies a day that is {primary['saved_a_day']:.0f} min a day."
        )
    lines += ["", "| studies | stage | AI: mean, median (n) | arrival | saved, min (95 %) |", "|---|---|---|---|---|"]
    for name, stages in values["waits"].items():
        for stage, found in stages.items():
            cells = [_arm(found[arm]) for arm in (AI, ARRIVAL)]
            lines.append(f"| {name} | {stage} | {cells[0]} | {cells[1]} | {_minutes_text(found['saved'])} |")
    return [*lines, ""]


def _arm(found: dict[str, Any]) -> str:
    return f"{found['mean']:.1f}, {found['median']:.1f} ({found['count']})" if found["count"] else "—"


def _minutes_text(found: dict[str, float | None]) -> str:
    if found["value"] is None:
        return "—"
    if found["low"] is None:
        return f"{found['value']:.1f} (too few blocks for an interval)"
    return f"{found['value']:.1f} ({found['low']:.1f} to {found['high']:.1f})"


def _seconds_text(found: dict[str, Any]) -> str:
    if not found["count"]:
        return "—"
    high = "too few" if found["p95"] is None else f"{found['p95']:.2f} s"
    return f"{found['median']:.2f} s, {high} ({found['count']})"


def _percent(found: dict[str, Any]) -> str:
    if not found["whole"]:
        return "—"
    return f"{found['part']} of {found['whole']}: {found['value']:.0%} ({found['low']:.0%}–{found['high']:.0%})"


def chart(found: Sequence[Study], critical: set[str]) -> str:
    """Return an SVG: which share of critical studies was signed within so many minutes, in either order."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for arm, colour, name in ((AI, "#1f5fa8", "order of AI"), (ARRIVAL, "#b3541e", "order of arrival")):
            waits = np.sort(_minutes([s for s in found if s.arm == arm and s.truth & critical], "received", "signed"))
            if waits.size:
                axes.step(
                    waits,
                    np.arange(1, waits.size + 1) / waits.size,
                    where="post",
                    color=colour,
                    label=f"{name} ({waits.size})",
                )
        axes.set_xlabel("minutes from received to signed")
        axes.set_ylabel("share of critical studies")
        axes.set_ylim(0, 1.02)
        axes.set_xlim(left=0)
        if axes.lines:
            axes.legend(loc="lower right")
        figure.tight_layout()

    return plots.svg(draw, 6, 3.4)


def write(folder: Path, values: dict[str, Any], found: Sequence[Study]) -> None:
    """Write ``report.json``, ``report.md`` and, where effects are told, ``chart.svg``."""
    counted = [study for study in found if not study.early]
    picture = chart(counted, set(values["plan"]["findings"])) if "primary" in values else ""
    record.write(folder, values, words(values), name="report", chart=picture)
