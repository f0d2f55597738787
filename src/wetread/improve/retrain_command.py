"""`wetread retrain`: is it time, and if so, from signed reviews to a candidate in shadow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wetread.improve.commands import Data, Json, actor, opened

EXIT = {"not due": 0, "shadow": 0, "staged": 0, "failed": 1, "gated": 1, "inconclusive": 3}


def retrain(
    policy: Annotated[Path, typer.Argument(help="When and how, TOML; see docs/retrain.md.")],
    data: Data,
    site: Annotated[str, typer.Option(help="The only site; default: every site.")] = "",
    force: Annotated[
        str,
        typer.Option(
            help="Train although it is not due, and why. Gives up what was stopped, unless begun so.", metavar="REASON"
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Train anew when the policy says that it is time, and hand what passes every gate to the rollout.

    Interrupted? The same command goes on. `DATA/improve/retrain/ID/record.md` explains every decision. Exit code 0:
    not due, or handed over; 1: a gate or staging failed, or nothing can be learnt from, so that there is no package;
    2: a step could not be done, and the next command tries it again; 3: inconclusive. Example:
    `wetread retrain retrain.toml --data clinic`
    """
    import json

    from wetread.clinic.archive import open_archive
    from wetread.improve import policy as policies
    from wetread.improve import retrain as training

    rule = policies.load(policy, training.Retraining)
    with opened(data) as (database, settings):
        room = training.Room(
            database, open_archive(data, settings), data, settings, site, policy.resolve().parent,
            actor(), lambda text: typer.echo(f"{text} …", err=True),
        )  # fmt: skip
        attempt = training.run(room, rule, force=force)
    if as_json:
        values = {key: str(value) if key in ("folder", "started") else value for key, value in vars(attempt).items()}
        typer.echo(json.dumps(values, indent=2))
    else:
        typer.echo(f"{policy}: {attempt.outcome}: {attempt.why}")
        if attempt.outcome != "not due":
            typer.echo(attempt.folder / "record.md")
    raise typer.Exit(EXIT[attempt.outcome])
