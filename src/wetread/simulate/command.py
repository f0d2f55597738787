"""`wetread simulate`: patients who arrive, readers who read them, pages that are opened, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

simulate = typer.Typer(no_args_is_help=True, help="Synthetic departments, for load, for teaching and for trying out.")

_Url = Annotated[str, typer.Option(help="Address of the running server.")]
_Token = Annotated[str, typer.Option(help="API token, from `wetread token`.", envvar="WETREAD_TOKEN")]


@simulate.command()
def arrivals(
    url: _Url = "http://127.0.0.1:8080",
    token: _Token = "",
    rate: Annotated[float, typer.Option(help="Mean arrivals per minute, at the times of a Poisson process.")] = 6.0,
    count: Annotated[int | None, typer.Option(help="Stop after so many studies; by default at Ctrl-C.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same patients at the same times.", min=0)] = 0,
    folder: Annotated[Path | None, typer.Option(help="Send the files of this folder instead of phantoms.")] = None,
    hourly: Annotated[
        str | None, typer.Option(help="24 weights, separated by commas: the relative rate in each hour of the day.")
    ] = None,
) -> None:
    """Send patients to a running server and print what became of them, as JSON.

    A study is sent when it is due, whether or not the server has answered the one before; latencies count from
    that moment.

    Example: `wetread simulate arrivals --rate 30 --count 100`
    """
    import json
    from itertools import islice

    from wetread.simulate import arrivals, department

    patients = department.phantoms(seed) if folder is None else department.folder(folder)
    gaps = department.gaps(rate, seed=seed, hourly=None if hourly is None else department.weights(hourly))
    with arrivals.connect(url, token) as client:
        summary = arrivals.send(islice(patients, count), gaps, client)
    typer.echo(json.dumps(summary.to_dict(), indent=2))
