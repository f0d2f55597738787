"""What a check for drift found, in words, as a picture, and as a folder that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wetread.evaluate import plots
from wetread.evaluate.shift import Change
from wetread.improve import record
from wetread.improve.drift import DRIFT, Report, Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HEAD = {DRIFT: "Drift", "quiet": "No drift", "unknown": "Too little to say"}


def words(report: Report) -> str:
    """Return the report as Markdown."""
    spans = [f"{period.since:%Y-%m-%d %H:%M} to {period.until:%Y-%m-%d %H:%M}" for period in
             (report.window, report.reference)]  # fmt: skip
    lines = [
        f"# {_HEAD[report.verdict]}: {report.model_name}, {report.site}",
        "",
        f"{spans[0]} against {spans[1]} (UTC). Verdict: **{report.verdict}**: {report.reason}.",
        f"Over everything below, a false alarm has a chance of at most {report.alpha:g}.",
        "",
    ]
    if report.new_devices:
        lines += [f"New devices: {', '.join(report.new_devices)}.", ""]
    if report.look:
        lines += ["Where to look:", "", *(f"- {hint}" for hint in report.look), ""]
    for source in report.sources:
        lines += _source(source)
    return "\n".join(lines)


def _source(source: Source) -> list[str]:
    lines = [f"## {source.name}", "", f"{source.before} patients before, {source.after} after.", ""]
    if not source.changes:
        return [*lines, "Too few to compare.", ""]
    lines += ["| what | effect | matters from | chance gives up to | p | |", "|---|---|---|---|---|---|"]
    alarms = set(source.alarms)
    for change in sorted(source.changes, key=lambda one: -one.effect / one.limit):
        name = f"{change.kind}: {change.name}"
        alarm = "**alarm**" if name in alarms else ""
        lines.append(
            f"| {name} | {change.effect:.3f} | {change.limit:g} | {change.usual:.3f} | {change.p:.3f} | {alarm} |"
        )
    if source.few:
        lines += ["", f"Too few to compare: {', '.join(source.few)}."]
    return [*lines, ""]


def chart(report: Report) -> str:
    """Return an SVG: each effect as a multiple of what matters, beside what chance gives."""
    rows: list[tuple[str, Change, bool]] = []
    for source in report.sources:
        for change in source.changes:
            if not (change.effect or change.usual):
                continue  # the same in every image
            name = f"{change.kind}: {change.name}"
            rows.append((f"{name} ({source.name})", change, name in source.alarms))
    rows.reverse()

    def draw(figure: Figure) -> None:
        axes, places = figure.add_subplot(), range(len(rows))
        axes.barh(places, [c.usual / c.limit for _, c, _ in rows], color="#dde2ea", label="chance alone (95 %)")
        for alarms, colour, name in ((False, "#1f5fa8", "effect"), (True, "#b3541e", "alarm")):
            mine = [(c.effect / c.limit, place) for place, (_, c, alarm) in enumerate(rows) if alarm is alarms]
            if mine:
                axes.plot(*zip(*mine, strict=True), "D" if alarms else "o", color=colour, markersize=4, label=name)
        axes.axvline(1, color="#1c2330", linewidth=0.8)
        axes.set_yticks(places, [name for name, *_ in rows])
        axes.set_ylim(-0.7, len(rows) - 0.3)
        axes.set_xlabel("effect, as a multiple of the smallest that matters")
        axes.set_title(f"{report.model_name}, {report.site}: the window to {report.window.until:%Y-%m-%d %H:%M}")
        axes.legend(loc="lower right")
        figure.tight_layout()

    return plots.svg(draw, 7.5, 1.3 + 0.2 * len(rows))


def write(folder: Path, report: Report) -> None:
    """Write ``report.json``, ``report.md`` and ``chart.svg`` into a folder, which is made."""
    picture = chart(report) if any(source.changes for source in report.sources) else ""
    record.write(folder, report.to_dict(), words(report), name="report", chart=picture)
