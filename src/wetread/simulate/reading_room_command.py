"""`wetread simulate reading-room`: what the order of the worklist does to the waits, by model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from wetread.evaluate.intervals import Interval
    from wetread.simulate.reading_room import Outcome, Room

_Share = float | None


def reading_room(
    readers: Annotated[int, typer.Option(help="Radiologists who read from one list.")] = 1,
    load: Annotated[float, typer.Option(help="Work that comes in what they can do, below 1.")] = 0.8,
    prevalence: Annotated[float, typer.Option(help="Share of patients with the disease.")] = 0.1,
    sensitivity: Annotated[_Share, typer.Option(help="Share of them that the AI flags; default 0.9.")] = None,
    fpf: Annotated[_Share, typer.Option(help="Share of the others that it flags; default 0.1.")] = None,
    reading_minutes: Annotated[float, typer.Option(help="Mean reading time.")] = 10.0,
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
        str | None, typer.Option(help="Take sensitivity and FPF from this model package.", metavar="MODEL")
    ] = None,
    finding: Annotated[str | None, typer.Option(help="Of the package.")] = None,
    point: Annotated[str, typer.Option(help="Of the package: screen or balanced.")] = "balanced",
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
        str | None, typer.Option(help="Several loads, separated by commas, instead of one.", metavar="LOADS")
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
    from wetread.model.package import Package
    from wetread.simulate import case_mix, pattern, queueing
    from wetread.simulate import reading_room as rooms
    from wetread.simulate import reading_room_plot as plots

    if plot is not None and plot.suffix.lower() not in plots.SUFFIXES:
        raise ConfigError(f"--plot {plot}: the name must end in {', '.join(plots.SUFFIXES)}")
    given: dict[str, Any] = {"readers": readers, "load": load, "preemptive": preemptive}
    if arrivals is not None:
        given["pattern"] = pattern.read(arrivals)
    if groups is None:
        if rule is not None:
            raise ConfigError("--rule needs --groups, which say who falls into its classes")
        if package is not None:
            if sensitivity is not None or fpf is not None:
                raise ConfigError("--package gives sensitivity and FPF; leave --sensitivity and --fpf out")
            if point not in ("screen", "balanced"):
                raise ConfigError(f"--point {point}: give screen or balanced")
            sensitivity, fpf = case_mix.accuracy(Package.open(package), finding, point)  # type: ignore[arg-type]
        kinds = rooms.two_classes(
            prevalence,
            0.9 if sensitivity is None else sensitivity,
            0.1 if fpf is None else fpf,
            reading_minutes,
            diseased=diseased_minutes,
            false_alarm=false_alarm_minutes,
        )
        room = rooms.Room(kinds, caps=(math.inf if cap is None else cap,) * 2, **given)
    else:
        if package is not None or cap is not None:
            raise ConfigError("--groups say what the AI does, and --rule the caps; leave --package and --cap out")
        limits = (math.inf,) * 3 if rule is None else case_mix.caps(priority.load(rule))
        room = rooms.Room(case_mix.groups(groups), caps=limits, above=case_mix.ABOVE, **given)
    if analytic and plot is not None and sweep is None:
        raise ConfigError("--plot: closed forms give means only; add --sweep, or leave out --analytic")

    every = [replace(room, load=value) for value in (_loads(sweep) if sweep else [load])]
    if not analytic and (most := max(rooms.enough(each, replications) for each in every)) > patients:
        how = f"below --patients {most}" if most <= rooms.MOST else "with any number of patients; try --analytic"
        typer.echo(f"! a room so busy settles slowly; its waits come out too short {how}", err=True)
    outcomes = None if analytic else [rooms.simulate(each, patients, replications, seed) for each in every]
    means = [queueing.means(each) for each in every] if outcomes is None else [found.means() for found in outcomes]
    if plot is not None:
        plots.draw(plot, every, means, outcomes)
    if as_json:
        rows = [{key: None if math.isnan(value) else value for key, value in one.items()} for one in means]
        said = [{"load": each.load, **row} for each, row in zip(every, rows, strict=True)]
        typer.echo(json.dumps(said if sweep else rows[0], indent=2, ensure_ascii=False))
    elif sweep or outcomes is None:
        Console().print(_means(every, means, outcomes))
    else:
        Console().print(_lines(room, outcomes[0]))


def _loads(text: str) -> list[float]:
    from wetread.errors import ConfigError

    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"--sweep {text!r}: give loads separated by commas, e.g. 0.5,0.7,0.9") from None


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    return table


def _means(every: list[Room], means: list[dict[str, float]], outcomes: list[Outcome] | None) -> Table:
    """Return mean waits by load, with intervals where they were simulated."""
    table = _table("load", *(f"{name}, min" for name in means[0]))
    for number, (room, found) in enumerate(zip(every, means, strict=True)):
        if outcomes is None:
            table.add_row(f"{room.load:g}", *("—" if math.isnan(value) else f"{value:.3f}" for value in found.values()))
        else:
            of = outcomes[number]
            table.add_row(
                f"{room.load:g}", _interval(of.fifo.mean), *(_interval(line.mean) for line in of.lines.values())
            )
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
