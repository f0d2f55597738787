"""`wetread drift`: does what comes in still look as it did? For a person, or a cron job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wetread.improve.commands import AnySite, Data, Json, Site, actor, clinic, moment, sites

drift = typer.Typer(no_args_is_help=True, help="Compare what comes in, and what is said of it, with how it was.")
EXIT = {"quiet": 0, "drift": 1, "unknown": 3}


@drift.command()
def check(
    data: Data,
    policy: Annotated[Path | None, typer.Option(help="TOML file; see docs/drift.md.")] = None,
    until: Annotated[str | None, typer.Option(help="End of the window, e.g. 2026-01-31; default: now.")] = None,
    site: AnySite = None,
    as_json: Json = False,
) -> None:
    """Compare the newest window of each model with its reference, and keep what was found.

    Of every check `DATA/improve/drift/ID` holds the report, in words, as JSON and as a picture. A window that was
    checked before is not checked again. Exit code 0: nothing, 1: drift, 3: too little to say. Example:
    `wetread drift check --data clinic`
    """
    import json

    from wetread.improve import drift as found
    from wetread.improve import drift_report
    from wetread.improve import policy as policies

    rule = policies.load(policy, found.DriftPolicy)
    end, who = moment(until, "--until"), actor()
    with clinic(data, site) as (database, _):
        reports = [
            one for name in sites(database, site) for one in found.check(database, name, rule, until=end, actor=who)
        ]
    for report in reports:
        folder = data / "improve" / "drift" / report.id
        drift_report.write(folder, report)
        if not as_json:
            typer.echo(f"{report.model_name} at {report.site}: {report.verdict}: {report.reason}")
            for hint in report.look:
                typer.echo(f"  {hint}")
            typer.echo(f"  {folder / 'report.md'}")
    if as_json:
        typer.echo(json.dumps([report.to_dict() for report in reports], indent=2))
    elif not reports:
        typer.echo("no model saw an image in the window")
    verdicts = {report.verdict for report in reports} or {found.UNKNOWN}
    raise typer.Exit(max((EXIT[verdict] for verdict in verdicts), key=(0, 3, 1).index))


@drift.command("list")
def list_checks(data: Data, site: Site = None, as_json: Json = False) -> None:
    """List the checks of a site, the newest first.

    Example: `wetread drift list --data clinic`
    """
    import json

    from wetread.improve.drift import latest

    with clinic(data, site) as (database, name), database.read() as connection:
        reports = latest(connection, name)
    if as_json:
        typer.echo(json.dumps(reports, indent=2))
        return
    for report in reports:
        typer.echo(f"{report['window']['until'][:16]}  {report['model_name']}  {report['verdict']}: {report['reason']}")
