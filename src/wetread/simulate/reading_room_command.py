"""`wetread simulate reading-room`: what the order of the worklist does to the waits, by model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from wetread.evaluate.intervals import Interval
    from wetread.simulate.reading_room import Outcome, Room

_Share = float | None
_ROC = "roc"
_FPF = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


def reading_room(
    readers: Annotated[int, typer.Option(help="Radiologists who read from one list.")] = 1,
    load: Annotated[float, typer.Option(help="Work that comes in what they can do, below 1.")] = 0.8,
    prevalence: Annotated[_Share, typer.Option(help="Share of patients with the disease; default 0.1.")] = None,
    sensitivity: Annotated[_Share, typer.Option(help="Share of them that the AI flags; default 0.9.")] = None,
    fpf: Annotated[_Share, typer.Option(help="Share of the others that it flags; default 0.1.")] = None,
    reading_minutes: Annotated[float | None, typer.Option(help="Mean reading time; default 10.")] = None,
    diseased_minutes: Annotated[
        float | None, typer.Option(help="That of patients with the disease; default: the same.")
    ] = None,
    false_alarm_minutes: Annotated[
        float | None, typer.Option(help="That of the others whom the AI flags; default: the same.")
    ] = None,
    preemptive: Annotated[
        bool, typer.Option("--preemptive/--no-preemptive", help="A flagged patient interrupts another's reading.")
    ] = True,
    cap: Annotated[
        float | None, typer.Option(help="Minutes after which a waiting patient goes to the top; default: never.")
    ] = None,
    package: Annotated[
        str | None,
        typer.Option(
            help="Take sensitivity and FPF from this model package; --fpf: a point of its ROC.", metavar="MODEL"
        ),
    ] = None,
    finding: Annotated[str | None, typer.Option(help="Of the package.")] = None,
    point: Annotated[
        str | None,
        typer.Option(help="Of the package: screen, balanced (default), or a sensitivity on its ROC curve, e.g. 0.9."),
    ] = None,
    groups: Annotated[
        Path | None, typer.Option(help="Named groups of patients instead of two classes.", metavar="TOML")
    ] = None,
    rule: Annotated[
        Path | None, typer.Option(help="With --groups: the site's priority rule, for its caps.", metavar="TOML")
    ] = None,
    arrivals: Annotated[
        str | None,
        typer.Option(
            help="Hourly pattern: `day`, 24 numbers between commas, or a TOML or CSV file.", metavar="PATTERN"
        ),
    ] = None,
    analytic: Annotated[bool, typer.Option("--analytic", help="Closed forms instead of a simulation.")] = False,
    sweep: Annotated[
        str | None,
        typer.Option(help="Several loads, separated by commas, instead of one; or `roc`: along the package's curve."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it: PNG, SVG or PDF.", metavar="FILE")] = None,
    patients: Annotated[int, typer.Option(help="Simulated patients, in all replications.")] = 400_000,
    replications: Annotated[int, typer.Option(help="Independent runs behind the intervals, 5 or more.")] = 20,
    seed: Annotated[int, typer.Option(help="The same seed gives the same patients.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the mean waits in minutes as JSON.")] = False,
) -> None:
    """Ask a model of the reading room how long patients wait, by arrival and in the order that the AI gives.

    Example: `wetread simulate reading-room --readers 2 --load 0.9 --no-preemptive --cap 240`;
    `wetread simulate reading-room --sweep 0.5,0.6,0.7,0.8,0.9 --plot waits.png`
    """
    from dataclasses import replace

    from rich.console import Console

    from wetread.clinic import priority
    from wetread.errors import ConfigError
    from wetread.simulate import case_mix, pattern, queueing
    from wetread.simulate import reading_room as rooms
    from wetread.simulate import reading_room_plot as plots

    if plot is not None and plot.suffix.lower() not in plots.SUFFIXES:
        raise ConfigError(f"--plot {plot}: the name must end in {', '.join(plots.SUFFIXES)}")
    given: dict[str, Any] = {"readers": readers, "load": load, "preemptive": preemptive}
    if arrivals is not None:
        given["pattern"] = pattern.read(arrivals)
    two = {
        "prevalence": prevalence, "sensitivity": sensitivity, "fpf": fpf, "reading-minutes": reading_minutes,
        "diseased-minutes": diseased_minutes, "false-alarm-minutes": false_alarm_minutes,
    }  # fmt: skip
    of_package = {"finding": finding, "point": point}
    if groups is not None:
        _unused("--groups say who comes and what the AI does", two | of_package | {"package": package})
        _unused("--rule has the caps of --groups", {"cap": cap})
        limits = (math.inf,) * 3 if rule is None else case_mix.caps(priority.load(rule))
        room = rooms.Room(case_mix.groups(groups), caps=limits, above=case_mix.ABOVE, **given)
        points = None
    else:
        _unused("--rule needs --groups, which say who falls into its classes", {"rule": rule})
        if package is None:
            _unused("they are of a --package, which is not given", of_package)
            points = [(0.9 if sensitivity is None else sensitivity, 0.1 if fpf is None else fpf)]
        else:
            _unused("--package gives the sensitivity", {"sensitivity": sensitivity})
            points = _points(package, finding, point, fpf, sweep)
        room, *others = (
            rooms.Room(
                rooms.two_classes(
                    0.1 if prevalence is None else prevalence,
                    *one,
                    10.0 if reading_minutes is None else reading_minutes,
                    diseased=diseased_minutes,
                    false_alarm=false_alarm_minutes,
                ),
                caps=(math.inf if cap is None else cap,) * 2,
                **given,
            )
            for one in points
        )
    if analytic and plot is not None and sweep is None:
        raise ConfigError("--plot: closed forms give means only; add --sweep, or leave out --analytic")

    if sweep == _ROC:
        if package is None or points is None:
            raise ConfigError("--sweep roc: goes along the curve of a --package, which is not given")
        every, where = [room, *others], [{"sensitivity": round(se, 4), "fpf": round(one, 4)} for se, one in points]
    else:
        every = [replace(room, load=value) for value in (_loads(sweep) if sweep else [load])]
        where = [{"load": each.load} for each in every]
    if not analytic and (most := max(rooms.enough(each, replications) for each in every)) > patients:
        how = f"below --patients {most}" if most <= rooms.MOST else "with any number of patients; try --analytic"
        typer.echo(f"! a room so busy settles slowly; its waits come out too short {how}", err=True)
    outcomes = None if analytic else [rooms.simulate(each, patients, replications, seed) for each in every]
    means = [queueing.means(each) for each in every] if outcomes is None else [found.means() for found in outcomes]
    if plot is not None:
        plots.draw(plot, every, means, outcomes, along=where)
    if as_json:
        rows: list[dict[str, float | None]] = [
            {key: None if math.isnan(value) else value for key, value in one.items()} for one in means
        ]
        said = [{**at, **row} for at, row in zip(where, rows, strict=True)]
        typer.echo(json.dumps(said if sweep else rows[0], indent=2, ensure_ascii=False))
    elif sweep or outcomes is None:
        Console().print(_means(where, means, outcomes))
    else:
        Console().print(_lines(room, outcomes[0]))


def _unused(why: str, options: Mapping[str, object]) -> None:
    """Refuse options that would be ignored."""
    from wetread.errors import ConfigError

    if given := [f"--{name}" for name, value in options.items() if value is not None]:
        raise ConfigError(f"{why}; leave {', '.join(given)} out")


def _points(
    package: str, finding: str | None, point: str | None, fpf: float | None, sweep: str | None
) -> list[tuple[float, float]]:
    """Return sensitivity and FPF of a package: at a point that it states, on its ROC curve, or all along it."""
    from wetread.errors import ConfigError
    from wetread.model.package import Package
    from wetread.simulate import case_mix

    opened = Package.open(package)
    if sweep == _ROC:
        _unused("--sweep roc goes along the whole curve", {"point": point, "fpf": fpf})
        curve = case_mix.Roc(opened, finding)
        return [curve.at_fpf(one) for one in _FPF]
    if fpf is not None:
        _unused("--fpf is the point of the curve", {"point": point})
        return [case_mix.Roc(opened, finding).at_fpf(fpf)]
    if point in (None, "screen", "balanced"):
        return [case_mix.accuracy(opened, finding, point or "balanced")]  # type: ignore[arg-type]
    try:
        wanted = float(point or "")
    except ValueError:
        raise ConfigError(f"--point {point}: give screen, balanced, or a sensitivity, 0 to 1") from None
    return [case_mix.Roc(opened, finding).at_sensitivity(wanted)]


def _loads(text: str) -> list[float]:
    from wetread.errors import ConfigError

    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"--sweep {text!r}: give loads separated by commas, e.g. 0.5,0.7,0.9, or roc") from None


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def _means(where: list[dict[str, float]], means: list[dict[str, float]], outcomes: list[Outcome] | None) -> Table:
    """Return mean waits by load or operating point, with intervals where they were simulated."""
    table = _table(*where[0], *(f"{name}, min" for name in means[0]))
    for number, (at, found) in enumerate(zip(where, means, strict=True)):
        if outcomes is None:
            cells = ["—" if math.isnan(value) else f"{value:.3f}" for value in found.values()]
        else:
            of = outcomes[number]
            cells = [_interval(of.fifo.mean), *(_interval(line.mean) for line in of.lines.values())]
        table.add_row(*(f"{value:g}" for value in at.values()), *cells)
    return table


def _lines(room: Room, outcome: Outcome) -> Table:
    """Return what a simulation says of each label."""
    capped = any(math.isfinite(cap) for cap in room.caps)
    names = ("patients", "share", "mean wait, min (95 %)", "less than by arrival (95 %)", "99 % within", "longest")
    table = _table(*names, *(["over cap"] if capped else []))
    every = {"all": outcome.everyone, "all, by arrival": outcome.fifo}
    for label, line in (outcome.lines | every).items():
        share = sum(kind.share for kind in room.kinds if label in every or label in kind.labels)
        saved = "" if line is outcome.fifo else _interval(line.saved)
        cells = [label.replace("_", " "), f"{share:.1%}", _interval(line.mean), saved]
        cells += [f"{line.p99:.0f}", f"{line.longest:.0f}", *([f"{line.over:.1%}"] if capped else [])]
        table.add_row(*("—" if cell == "nan" else cell for cell in cells))
    return table


def _interval(value: Interval) -> str:
    if math.isnan(value.value):
        return "—"
    limits = "" if math.isnan(value.low) else f" ({value.low:.2f} to {value.high:.2f})"
    return f"{value.value:.2f}{limits}"
