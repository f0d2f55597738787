"""`wetread bench`: measure a machine, and compare machines."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from wetread.infer.bench import Report
    from wetread.infer.bench_compare import Cell

bench = typer.Typer(help="Measure how fast this machine runs models; `bench compare` puts machines side by side.")


@bench.callback(invoke_without_command=True)
def measure(
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="A package, once or more; default: the shipped ones.", metavar="MODEL"),
    ] = None,
    runtime: Annotated[str | None, typer.Option(help="Only onnxruntime, openvino, cuda or tensorrt.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the runtime; default: the processors.", min=1, max=1024)
    ] = None,
    callers: Annotated[
        str, typer.Option(help="How many ask at once, separated by commas.", metavar="NUMBERS")
    ] = "1,2,4,8",
    batch: Annotated[int, typer.Option(help="Images in a batch.", min=1, max=256)] = 16,
    seconds: Annotated[float, typer.Option(help="Of each measurement.", min=0.01, max=3600)] = 3.0,
    name: Annotated[str, typer.Option(help="What to call this machine; default: its host name.")] = "",
    data: Annotated[Path | None, typer.Option(help="Data folder in which models are looked up too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, for `bench compare`.")] = False,
) -> None:
    """Measure how fast this machine runs models; `bench compare` puts machines side by side.

    Each package on each runtime, in a process of its own: size, loading, one image, batches, several callers, memory.

    Example: `wetread bench --json > laptop.json`; `wetread bench --model models/densenet --threads 8`
    """
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console

    from wetread import config
    from wetread.errors import ConfigError
    from wetread.infer import bench as measuring
    from wetread.infer.machine import usable

    try:
        counts = tuple(int(word) for word in callers.split(","))
    except ValueError:
        counts = ()
    if not 1 <= len(counts) <= 16 or not all(1 <= count <= 256 for count in counts):
        raise ConfigError(f"--callers {callers!r}: give up to 16 numbers from 1 to 256, e.g. 1,4,8")
    report = measuring.run(
        models or ["phantom", "pneumonia"],
        measuring.Conditions(threads=threads or max(1, int(usable())), seconds=seconds, batch=batch, callers=counts),
        runtime=runtime,
        name=name,
        data=data,
        settings=config.load(Path("wetread.toml")),
        progress=lambda said: typer.echo(said, err=True) if sys.stderr.isatty() else None,
    )
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
        return
    for table in _tables([report], [Path("this")]):
        Console().print(table, "")
    for result in report.results:
        if result.error:
            typer.echo(f"! {result.model} on {result.runtime}: {result.error}", err=True)


@bench.command()
def compare(
    files: Annotated[
        list[Path], typer.Argument(help="What `wetread bench --json` printed, one a machine.", metavar="REPORT.json...")
    ],
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print values and ratios as JSON.")] = False,
) -> None:
    """Put machines side by side; ratios say how many times as good as the first machine.

    Example: `wetread bench compare laptop.json server.json --markdown`
    """
    from rich.console import Console

    from wetread.infer import bench_compare

    reports = [bench_compare.read(file) for file in files]
    if as_json:
        machines = bench_compare.names(reports, files)
        found = {"machines": machines, "rows": [asdict(row) for row in bench_compare.rows(reports)]}
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    elif as_markdown:
        typer.echo("\n\n".join(bench_compare.markdown(*table) for table in _cells(reports, files)))
    else:
        for table in _tables(reports, files):
            Console().print(table, "")


def _cells(reports: Sequence[Report], files: Sequence[Path]) -> list[tuple[list[str], list[list[str]]]]:
    """Return header and body of both tables: what the machines are, and how fast."""
    from wetread.infer import bench_compare

    machines = bench_compare.names(reports, files)
    figures = [[row.case, row.figure, *(_cell(cell) for cell in row.cells)] for row in bench_compare.rows(reports)]
    return [
        (["machine", *machines], bench_compare.facts(reports)),
        (["package, runtime", "figure", *machines], figures),
    ]


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "—"
    value = f"{cell.value:.1f}" if cell.value < 100 else f"{cell.value:,.0f}"
    return value if cell.ratio is None or cell.ratio == 1 else f"{value} ({cell.ratio:.2f}×)"


def _tables(reports: Sequence[Report], files: Sequence[Path]) -> list[Table]:
    from rich.table import Table
    from rich.text import Text

    from wetread.infer.bench_compare import plain

    tables = []
    for header, body in _cells(reports, files):
        table = Table(box=None, pad_edge=False, header_style="bold")
        for number, name in enumerate(header):
            words = len(header) - len(reports)
            table.add_column(Text(plain(name)), justify="left" if number < words else "right")
        before = ""
        for line in body:
            said, before = ("" if line[0] == before else line[0]), line[0]
            table.add_row(*(Text(plain(cell)) for cell in (said, *line[1:])))
        tables.append(table)
    return tables
