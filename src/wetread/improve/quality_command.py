"""`wetread quality`: how right the models are, by what readers signed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from wetread.improve.commands import Data, Json, Site, clinic, moment

if TYPE_CHECKING:
    from rich.table import Table

    from wetread.clinic.accuracy import Accuracy


def quality(
    data: Data,
    days: Annotated[int, typer.Option(help="Of so many days, by the time of the signature.", min=1, max=366)] = 28,
    until: Annotated[str | None, typer.Option(help="Their end, e.g. 2026-01-31; default: now.")] = None,
    model: Annotated[str, typer.Option(help="Of the model with this SHA-256 only.")] = "",
    weeks: Annotated[bool, typer.Option(help="With --json also week by week.")] = True,
    site: Site = None,
    as_json: Json = False,
) -> None:
    """Tell how right the models are by what readers signed, with 95 % intervals over patients.

    Reads of the random-audit sample, other blind ones and those made after the model's word stand apart. Readers are
    no ground truth. Example: `wetread quality --data clinic --days 90 --json`
    """
    import json

    from rich.console import Console

    from wetread.clinic import accuracy, store
    from wetread.clinic.figures import Period

    period = Period.last(days, moment(until, "--until") or store.now())
    with clinic(data, site) as (database, name), database.read() as connection:
        found = accuracy.accuracy(connection, name, period, model=model, weeks=weeks and as_json)
    if as_json:
        span = {"since": period.since.isoformat(), "until": period.until.isoformat()}
        typer.echo(json.dumps({"site": name, **span, "accuracy": [one.to_dict() for one in found]}, indent=2))
    elif not found:
        typer.echo(f"{name}: nobody signed a study that a model had analysed, in {days} days")
    else:
        Console(width=None).print(_table(found))
        typer.echo(
            "True is what readers said: of audit and blind reads their own call, of anchored ones their answers, which "
            "follow the model. Only audit reads are unbiased."
        )


def _table(found: list[Accuracy]) -> Table:
    from rich.table import Table

    from wetread.clinic.accuracy import NAMES

    table = Table("model", "finding", "reads", "studies", "present", *NAMES)
    for one in found:
        cells = []
        for name in NAMES:
            number = getattr(one.measures, name)
            interval = f" ({number.low:.2f}–{number.high:.2f})" if number.low == number.low else ""
            cells.append(f"{number.value:.2f}{interval}" if number.value == number.value else "—")
        table.add_row(one.name, one.finding, one.reads, str(one.studies), str(one.present), *cells)
    return table
