"""`wetread correct`: patient, merge and rejection by hand, beside a service that runs or without one."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from wetread.clinic.corrections import Corrections

correct = typer.Typer(no_args_is_help=True, help="Set right what came in wrong; nothing is deleted, all is audited.")

_Data = Annotated[Path, typer.Option(help="Data folder of the server.")]
_Study = Annotated[str, typer.Argument(help="The study's id.")]
_Image = Annotated[str, typer.Argument(help="The image's id.")]
_Reason = Annotated[str, typer.Option(help="Why; kept with it.")]
_Site = Annotated[str | None, typer.Option(help="Its site; default: setting site.")]


@contextmanager
def _open(data: Path, site: str | None) -> Iterator[tuple[Corrections, str]]:
    import sqlalchemy as sa

    from wetread import config
    from wetread.clinic import priority, processes, store, switches
    from wetread.clinic.corrections import Corrections
    from wetread.clinic.triage import Policy

    settings = config.load(Path("wetread.toml"))
    rules = priority.rules(settings.priority)

    def policy(connection: sa.Connection, name: str) -> Policy:
        return switches.policy(connection, name, rules.of(name), ai=settings.ai)

    database = store.Store.existing(data, settings.database)

    def models() -> list[str]:
        return sorted({model for process in processes.alive(database) for model in process["models"]})

    try:
        yield Corrections(database, policy, models), site or settings.site
    finally:
        database.close()


def _actor() -> str:
    return f"command line ({getpass.getuser()})"[:64]


@correct.command("patient")
def correct_patient(
    study: _Study,
    data: _Data,
    reason: _Reason,
    patient_id: Annotated[str | None, typer.Option(help="The right identifier.")] = None,
    name: Annotated[str | None, typer.Option(help="The right name, as `Family, Given`.")] = None,
    birth_date: Annotated[str | None, typer.Option(help="YYYY-MM-DD; empty for unknown.")] = None,
    sex: Annotated[str | None, typer.Option(help="M, F or O; empty for unknown.")] = None,
    site: _Site = None,
) -> None:
    """Correct whom a study is of, and print the study's id: another one, when it was merged into that.

    Example: `wetread correct patient 5f0c… --patient-id 4711 --reason "wrong worklist entry" --data clinic`
    """
    with _open(data, site) as (corrections, where):
        said = {"patient_id": patient_id, "patient_name": name, "birth_date": birth_date, "sex": sex}
        values = {key: value for key, value in said.items() if value is not None}
        typer.echo(corrections.patient(where, study, values, reason, _actor()))


@correct.command("patients")
def correct_patients(
    old: Annotated[str, typer.Argument(help="The identifier that is given up.")],
    new: Annotated[str, typer.Argument(help="The identifier that stays.")],
    data: _Data,
    reason: _Reason,
    site: _Site = None,
) -> None:
    """Give all studies of a patient, present and future, to another identifier, and list those that changed."""
    with _open(data, site) as (corrections, where):
        for study in corrections.merge_patients(where, [old], new, {}, _actor(), reason):
            typer.echo(study)


@correct.command("merge")
def correct_merge(
    study: _Study,
    into: Annotated[str, typer.Argument(help="The study that takes it over.")],
    data: _Data,
    reason: _Reason,
    site: _Site = None,
) -> None:
    """Let another study of the same patient take over a study's images and reviews."""
    with _open(data, site) as (corrections, where):
        corrections.merge(where, study, into, reason, _actor())


@correct.command("reject")
def correct_reject(
    image: _Image,
    data: _Data,
    reason: _Reason,
    code: Annotated[
        str, typer.Option(help="113001 quality, 113037 patient safety, 113038 worklist entry, or BY_HAND.")
    ] = "BY_HAND",
    site: _Site = None,
) -> None:
    """Take an image out of display and ranking, and print its study. It stays listed and can be restored."""
    with _open(data, site) as (corrections, where):
        typer.echo(corrections.reject(where, image, reason, _actor(), code))


@correct.command("restore")
def correct_restore(
    image: _Image,
    data: _Data,
    reason: _Reason,
    site: _Site = None,
) -> None:
    """Take the rejection of an image back, and print its study."""
    with _open(data, site) as (corrections, where):
        typer.echo(corrections.restore(where, image, _actor(), reason))
