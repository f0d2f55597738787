"""Reports of `wetread bench` side by side: laptops, servers, GPUs; each figure with its ratio to the first one's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from wetread.errors import ConfigError
from wetread.infer.bench import Figures, Report, Result

MOST_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Cell:
    """A figure of one machine; `ratio` is how many times as good it is as the first machine's, where both have one."""

    value: float
    ratio: float | None


@dataclass(frozen=True)
class Row:
    """One figure of one package on one runtime, over the machines; None where a machine has none."""

    case: str
    figure: str
    cells: tuple[Cell | None, ...]


def read(file: Path) -> Report:
    """Read what `wetread bench --json` printed.

    Raises
    ------
    ConfigError
        For a file that is none, naming the field.
    """
    try:
        with file.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from None
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{file}: more than {MOST_BYTES >> 20} MiB; give what `wetread bench --json` printed")
    try:
        return Report.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        said = f"{where}: {first['msg']}" if where else first["msg"]
        raise ConfigError(f"{file}: {plain(said)[:300]}; give what `wetread bench --json` printed") from None


def rows(reports: Sequence[Report]) -> list[Row]:
    """Put the figures of machines side by side.

    A package is the same where its id is; the cases stand in the order in which they first come.
    """
    found = [
        {(r.model, r.model_id, r.precision, r.runtime): _named(r, r.figures) for r in report.results if r.figures}
        for report in reports
    ]
    cases = dict.fromkeys(case for one in found for case in one)
    table = []
    for case in cases:
        model, model_id, precision, runtime = case
        if len({i for m, i, *_ in cases if m == model}) > 1:
            model = f"{model} {model_id[:8]}"
        each = [one.get(case, {}) for one in found]
        for name in dict.fromkeys(name for figures in each for name in figures):
            cells = _cells([figures.get(name) for figures in each])
            table.append(Row(f"{model} {precision}, {runtime}", name, cells))
    return table


def names(reports: Sequence[Report], files: Sequence[Path]) -> list[str]:
    """Return what each machine is called; with its file where two have the same name."""
    found = [report.machine.name for report in reports]
    return [n if found.count(n) == 1 else f"{n} ({file.stem})" for n, file in zip(found, files, strict=True)]


def facts(reports: Sequence[Report]) -> list[list[str]]:
    """Return rows of what the machines are and how they were measured: the fact, then what it is of each."""
    columns = []
    for report in reports:
        machine = report.machine
        columns.append(
            {
                "CPU": machine.cpu,
                "processors": f"{machine.usable:g} of {machine.cores}",
                "instructions": ", ".join(machine.flags),
                "memory, GiB": f"{machine.memory_bytes / 2**30:.0f}" if machine.memory_bytes else "",
                "GPU": "; ".join(machine.gpus),
                "threads": str(report.plan.threads),
                "load before": f"{machine.load:.1f}",
                "Wetread": report.wetread,
                "measured": f"{report.at:%Y-%m-%d}",
            }
        )
    return [[fact, *(column[fact] or "—" for column in columns)] for fact in columns[0]]


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; whatever a report says stays within its cell."""

    def safe(cell: str) -> str:
        return plain(cell).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")

    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(map(safe, line)) + " |" for line in lines)


def plain(text: str) -> str:
    """Return text of a file as one line that cannot drive a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _named(result: Result, figures: Figures) -> dict[str, tuple[float, bool]]:
    """Return name → value, and whether more is better; of a server elsewhere not what only the asking process took."""
    batches = f"batches of {figures.throughput.batch}"
    found = {
        "package, MiB": (result.package_bytes / 2**20, False),
        "to load, s": (figures.load_s, False),
        "one image, p50 ms": (figures.single.p50_ms, False),
        "one image, p95 ms": (figures.single.p95_ms, False),
        "graph alone, p50 ms": (figures.graph.p50_ms, False),
        f"{batches}, images/s": (figures.throughput.images_s, True),
        f"{batches}, CPU ms/image": (figures.throughput.cpu_ms, False),
        **{f"{c.callers} caller{'s' * (c.callers > 1)}, images/s": (c.images_s, True) for c in figures.concurrency},
        "memory at most, MiB": (figures.peak_rss_bytes / 2**20, False),
    }
    own = ("to load, s", f"{batches}, CPU ms/image", "memory at most, MiB") if result.runtime == "remote" else ()
    return {name: value for name, value in found.items() if name not in own}


def _cells(values: Sequence[tuple[float, bool] | None]) -> tuple[Cell | None, ...]:
    cells: list[Cell | None] = []
    for found in values:
        if found is None:
            cells.append(None)
            continue
        value, more = found
        first = None if values[0] is None else values[0][0]
        good, bad = (value, first) if more else (first, value)
        cells.append(Cell(value, good / bad if good is not None and bad else None))
    return tuple(cells)
