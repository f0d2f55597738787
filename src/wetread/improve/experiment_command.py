"""`wetread experiment`: AI's order of the list against the order of arrival, by shifts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wetread.improve.commands import AnySite, Data, Json, Site, actor, clinic, opened, sites

experiment = typer.Typer(no_args_is_help=True, help="Compare AI's order of the list with the order of arrival.")

_Key = Annotated[str, typer.Option("--experiment", help="Beginning of its id; default: the newest.")]


@experiment.command()
def size(
    sd: Annotated[float, typer.Option(help="Standard deviation of the blocks' mean waits, in min.", min=0.001)],
    effect: Annotated[float, typer.Option(help="Smallest difference that matters, in min.", min=0.001)],
    power: Annotated[float, typer.Option(help="Chance to show it.", min=0.5, max=0.999)] = 0.8,
    alpha: Annotated[float, typer.Option(help="Chance to show what is not there.", min=0.001, max=0.2)] = 0.05,
) -> None:
    """Print how many blocks show an effect.

    Example: `wetread experiment size --sd 20 --effect 10`
    """
    from wetread.improve.experiment import blocks_needed

    typer.echo(blocks_needed(sd, effect, power, alpha))


@experiment.command()
def start(
    plan: Annotated[Path, typer.Argument(help="TOML file; see docs/experiment.md.")],
    data: Data,
    site: Site = None,
) -> None:
    """Begin an experiment at a site; nothing else about the clinic changes.

    While one with the same plan is under way nothing changes at all; once it has ended, a new one begins. Example:
    `wetread experiment start plan.toml --data clinic`
    """
    from wetread.improve import experiment as experiments
    from wetread.improve import policy

    wanted = policy.load(plan, experiments.Design)
    with opened(data) as (database, settings):
        name = site or settings.site
        known = experiments.known(database, data, settings, name)
        found, new = experiments.start(database, name, wanted, actor(), known=known)
    begun = f"{found.id}: {name}, {wanted.blocks} blocks, since {found.started_at:%Y-%m-%d %H:%M} UTC"
    typer.echo(begun if new else f"{begun}; unchanged")


@experiment.command()
def watch(data: Data, site: AnySite = None) -> None:
    """End each experiment that is over or whose guard speaks; run it every few minutes.

    Exit code 1: a guard ended it. Example: `wetread experiment watch --data clinic`
    """
    from wetread.improve import experiment as experiments

    with clinic(data, site) as (database, _):
        watched = [experiments.watch(database, name, actor()) for name in sites(database, site)]
    found = [one for one in watched if one is not None]
    for there, reasons in found:
        typer.echo(f"{there.site}, {there.id}: {'; '.join(reasons) if reasons else 'goes on'}")
    if not found:
        typer.echo("no experiment is under way")
    raise typer.Exit(int(any(there.ended == "guard" for there, _ in found)))


@experiment.command()
def stop(
    data: Data,
    reason: Annotated[str, typer.Option(help="Why; kept with it.")],
    site: Site = None,
) -> None:
    """End the experiment of a site; the list is AI's again within seconds. One that has ended stays as it is.

    Example: `wetread experiment stop --reason "new scanner" --data clinic`
    """
    from wetread.improve import experiment as experiments

    with clinic(data, site) as (database, name):
        found, now = experiments.stop(database, name, reason, actor())
    told = f"{found.reason}, {found.ended_at:%Y-%m-%d %H:%M} UTC" if found.ended_at else ""
    typer.echo(f"{found.id}: {'ended' if now else 'ended already'} ({told})")


@experiment.command()
def report(
    data: Data,
    key: _Key = "",
    interim: Annotated[bool, typer.Option("--interim", help="Tell effects before its end, marked as such.")] = False,
    site: Site = None,
    as_json: Json = False,
) -> None:
    """Report an experiment: waits by stage, finding, class and reader in either order, with intervals over blocks.

    Also kept in `DATA/improve/experiment/ID`. Before its end no effect is told. Example:
    `wetread experiment report --data clinic`
    """
    import json

    from wetread.clinic import priority, store
    from wetread.improve import experiment as experiments
    from wetread.improve import experiment_report, experiment_studies

    with opened(data) as (database, settings), database.read() as connection:
        name = site or settings.site
        there = experiments.find(connection, name, key)
        found = experiment_studies.studies(connection, there, priority.rules(settings.priority).of(name))
    over = there.ended_at is not None or there.over(store.now())
    values = experiment_report.report(there, found, over=over, interim=interim)
    experiment_report.write(data / "improve" / "experiment" / there.id, values, found)
    typer.echo(json.dumps(values, indent=2) if as_json else experiment_report.words(values))
