"""`wetread rollout`: a package into service and back, by a person or a cron job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wetread.improve.commands import Data, Json, actor, opened

if TYPE_CHECKING:
    from wetread.clinic.deploying import Change
    from wetread.improve.rollout import Rollout

rollout = typer.Typer(
    no_args_is_help=True, help="Bring a package into service step by step, and take it back: no restart, nothing lost."
)
EXIT = {"promote": 0, "roll_back": 1, "hold": 3}
NOTHING = 4  # challenges, as a timer mostly finds it
_WORST = ("roll_back", "hold", "promote")

_Site = Annotated[str, typer.Option(help="The only site; default: every site.")]
_Slot = Annotated[str, typer.Option(help="Task and population, as `chexpert/adult`; needed when there are several.")]
_Reason = Annotated[str, typer.Option(help="Why; kept with it.")]
_Policy = Annotated[Path | None, typer.Option(help="TOML file; see docs/rollout.md.")]
_Database = Annotated[str | None, typer.Option(help="SQLAlchemy URL; default: setting database.")]
_Model = Annotated[str, typer.Option(help="Which package: its name, or the beginning of its id.")]
_Package = Annotated[str, typer.Argument(help="Path, name or id of the package.")]


@contextmanager
def _open(data: Path, database: str | None, site: str) -> Iterator[Rollout]:
    from wetread.improve.rollout import Rollout

    with opened(data, database) as (there, settings):
        yield Rollout(there, data, settings, actor(), site)


def _change(data: Path, database: str | None, site: str, as_json: bool, deed: Callable[[Rollout], Change]) -> None:
    import json

    from wetread.improve.rollout import change_json

    with _open(data, database, site) as there:
        change = deed(there)
    typer.echo(json.dumps(change_json(change), indent=2) if as_json else change.words)


@rollout.command()
def stage(
    package: _Package,
    data: Data,
    policy: _Policy = None,
    database: _Database = None,
    site: _Site = "",
    as_json: Json = False,
) -> None:
    """Test a package beside the champion, and put it where services find it.

    Golden outputs, behaviour and load; exit code 1 when one fails. The record is in `DATA/improve/rollout`. Example:
    `wetread rollout stage runs/densenet/package --data clinic`
    """
    import json

    from wetread.improve import policy as policies
    from wetread.improve.rollout import RolloutPolicy

    rules = policies.load(policy, RolloutPolicy)
    with _open(data, database, site) as there:
        staged = there.stage(package, rules.staging)
    if as_json:
        typer.echo(json.dumps(staged.to_json(), indent=2))
    else:
        for test in staged.tests:
            typer.echo(f"{'pass' if test.passed else 'FAIL'}  {test.name}: {test.found} (wanted: {test.wanted})")
        said = "was staged already" if staged.unchanged else "is staged" if staged.passed else "is not staged"
        typer.echo(f"{staged.model_name} ({staged.model[:12]}) {said} for {staged.slot}")
    raise typer.Exit(0 if staged.passed else 1)


@rollout.command()
def shadow(
    package: _Package,
    data: Data,
    reason: _Reason = "",
    database: _Database = None,
    site: _Site = "",
    as_json: Json = False,
) -> None:
    """Let a staged package analyse what comes from now on, unseen, beside the champion.

    Example: `wetread rollout shadow runs/densenet/package --data clinic`
    """
    _change(data, database, site, as_json, lambda there: there.shadow(package, reason))


@rollout.command()
def canary(
    data: Data,
    share: Annotated[
        float, typer.Option(help="Of the patients whose studies come from now on.", min=0.001, max=0.999)
    ] = 0.1,
    reason: _Reason = "",
    slot: _Slot = "",
    database: _Database = None,
    site: _Site = "",
    as_json: Json = False,
) -> None:
    """Let the challenger's word count for the new studies of a share of the patients, or change that share.

    Example: `wetread rollout canary --share 0.2 --data clinic`
    """
    _change(data, database, site, as_json, lambda there: there.canary(share, reason, slot=slot))


@rollout.command()
def promote(
    data: Data,
    model: _Model = "",
    reason: _Reason = "",
    slot: _Slot = "",
    database: _Database = None,
    site: _Site = "",
    as_json: Json = False,
) -> None:
    """Make the challenger the champion, whatever verdicts say.

    Example: `wetread rollout promote --reason "agreed on 3 May" --data clinic`
    """
    _change(data, database, site, as_json, lambda there: there.promote(reason, slot=slot, model=model))


@rollout.command()
def hold(
    data: Data,
    reason: _Reason = "",
    slot: _Slot = "",
    database: _Database = None,
    site: _Site = "",
    as_json: Json = False,
) -> None:
    """Keep the challenger where it is until a person moves it: no verdict promotes it.

    Example: `wetread rollout hold --reason "new scanner this week" --data clinic`
    """
    _change(data, database, site, as_json, lambda there: there.hold(reason, slot=slot))


@rollout.command()
def rollback(
    data: Data,
    model: _Model = "",
    reason: _Reason = "by hand",
    slot: _Slot = "",
    database: _Database = None,
    site: _Site = "",
    as_json: Json = False,
) -> None:
    """End the challenger, or, when nothing challenges, bring the champion's predecessor back.

    What it ranked and nobody signed yet is ranked anew within seconds. The answer names what was rolled back and who is
    champion now. Given again by the same person within ten minutes it changes nothing; `--model` says which is meant.
    Example: `wetread rollout rollback --reason "misses small pneumothoraces" --data clinic`
    """
    _change(data, database, site, as_json, lambda there: there.rollback(reason, slot=slot, model=model))


@rollout.command()
def verdict(
    data: Data,
    policy: _Policy = None,
    apply: Annotated[bool, typer.Option("--apply", help="Do what it says.")] = False,
    browsers: Annotated[
        Path | None, typer.Option(help="What `wetread simulate browsers --out` measured in canary.", metavar="FILE")
    ] = None,
    slot: _Slot = "",
    database: _Database = None,
    site: _Site = "",
    as_json: Json = False,
) -> None:
    """Weigh the challenger against the champion on the studies that both analysed; say it, or do it.

    Exit code 0: promote, 1: roll back, 3: hold, 4: nothing challenges. With `--apply` all that challenge, in any slot
    and at any site, are weighed, each by itself (`--json` gives a list); the worst verdict is the exit code.
    The records are in `DATA/improve/rollout`. Example:
    `wetread rollout verdict --apply --policy rollout.toml --data clinic`
    """
    import json

    from wetread.errors import ConflictError
    from wetread.improve import policy as policies
    from wetread.improve import verdict as verdicts
    from wetread.improve.rollout import RolloutPolicy, change_json

    rules = policies.load(policy, RolloutPolicy)
    with _open(data, database, site) as there:
        done, refused = [], None
        challenged = there.challenged(slot)
        for each, name in challenged if apply or not challenged else [(there, slot)]:
            try:
                said = each.judge(rules.verdict, slot=name, browsers=browsers)
                done.append((said, each.act(said, rules) if apply else None))
            except ConflictError as error:  # somebody moved it meanwhile; the others are weighed all the same
                refused = error
    if as_json:
        found = [said.to_json() | {"applied": change_json(change) if change else None} for said, change in done]
        if apply or found:
            typer.echo(json.dumps(found if apply else found[0], indent=2))
    else:
        for said, change in done:
            typer.echo(verdicts.render(said))
            if change is not None:
                typer.echo(change.words)
    if refused is not None:
        raise refused
    if not done:
        typer.echo("nothing challenges a champion; there is nothing to judge", err=as_json)
        raise typer.Exit(NOTHING)
    raise typer.Exit(EXIT[min((said.outcome for said, _ in done), key=_WORST.index)])


@rollout.command()
def status(
    data: Data,
    database: _Database = None,
    site: _Site = "",
    as_json: Json = False,
) -> None:
    """List what is in service, what challenges it, and since when.

    Example: `wetread rollout status --data clinic`
    """
    import json

    from wetread.improve.rollout import slot_json

    with _open(data, database, site) as there:
        slots = there.status()
    if as_json:
        typer.echo(json.dumps([slot_json(slot) for slot in slots], indent=2))
        return
    for slot in slots:
        typer.echo(slot.name)
        for row in (slot.champion, slot.challenger):
            if row is not None:
                share = f" with {row.share:.0%}" if row.stage == "canary" else ""
                held = ", held" if row.held else ""
                said = f"; last verdict: {row.verdict['outcome']} ({row.verdict['reasons'][0]})" if row.verdict else ""
                typer.echo(f"  {row.stage}{share}: {row.label} since {row.since:%Y-%m-%d %H:%M} UTC{held}{said}")
    if not slots:
        typer.echo("nothing is deployed; `wetread serve` makes the models of the settings champions")
