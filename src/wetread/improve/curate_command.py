"""`wetread curate`: what was signed to the next version of a dataset, suspects among labels, tasks for Label Studio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from wetread.errors import ConfigError
from wetread.improve.commands import Data, Json, actor, clinic

if TYPE_CHECKING:
    from wetread.config import Settings
    from wetread.findings import Task
    from wetread.radiograph.suitability import Population

curate = typer.Typer(invoke_without_command=True, help="Make a dataset of what readers signed, without the patients.")

_Site = Annotated[str | None, typer.Option(help="Only this site's studies.")]


def _settings() -> Settings:
    from wetread import config

    return config.load(Path("wetread.toml"))


def _task(data: Path, name: str | None) -> Task:
    """Return the task that is asked for, else that of the newest version, else CheXpert's."""
    from wetread import findings
    from wetread.dataset.dataset import Dataset
    from wetread.improve.curate import versions

    there = versions(data)
    return findings.task(name) if name else Dataset.open(there[-1]).task if there else findings.CHEXPERT


@curate.callback()
def make(
    context: typer.Context,
    data: Annotated[Path | None, typer.Option(help="Data folder of the server.")] = None,
    parent: Annotated[
        Path | None, typer.Option(help="Version before; default: the newest for the same site, population and views.")
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="Packed dataset whose task and transform the first version takes.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New folder; default: the next number in DATA/datasets.")] = None,
    site: _Site = None,
    valid: Annotated[
        float | None, typer.Option(help="Share of new patients that tune; default: the parent's, or 0.1.")
    ] = None,
    test: Annotated[
        float | None, typer.Option(help="Share of new patients that judge; default: the parent's, or 0.2.")
    ] = None,
    views: Annotated[str, typer.Option(help="frontal, lateral or all.")] = "frontal",
    population: Annotated[
        str, typer.Option(help="Only studies of adult or child patients, or of unknown age; default: any.")
    ] = "any",
    workers: Annotated[int, typer.Option(help="Processes that decode.", min=1)] = 2,
    as_json: Json = False,
) -> None:
    """Make the next version of the dataset of signed reviews, if there is anything new.

    A version holds all reviewed cases so far, de-identified, and names the version before. No patient ever changes
    from training to judging. Readers who differ leave a label uncertain. Beside it: `lineage.jsonl`, `hard/`, and
    `audit/`, the random-audit sample as a dataset of its own.

    Example: `wetread curate --data clinic --like data/base`; then `wetread join data/next data/base
    clinic/datasets/0001`
    """
    if context.invoked_subcommand is not None:
        return
    from wetread.clinic.archive import open_archive
    from wetread.improve import curate as curating
    from wetread.radiograph.read import Limits

    if data is None:
        raise ConfigError("--data: name the data folder of a clinic")
    request = curating.Request(parent, like, out, site, valid, test, views, workers, cast("Population", population))
    settings = _settings()
    with clinic(data, site) as (database, _):
        archive = open_archive(data, settings)
        found = curating.run(database, archive, data, request, limits=Limits.of(settings), actor=actor())
    if as_json:
        path = str(found.version) if found.version else None
        typer.echo(json.dumps({"version": path, "made": found.made, **found.summary}, indent=1))
    elif found.version is None:
        typer.echo("nothing is signed yet; nothing was made")
    elif not found.made:
        typer.echo(f"{found.version}: nothing new since; nothing was made")
    else:
        s = found.summary
        sides = ", ".join(f"{count} {name}" for name, count in s["splits"].items())
        typer.echo(f"{found.version}: {s['images']} images of {s['patients']} patients ({sides})")
        typer.echo(f"{s['studies']} studies, on {s['disputed']} of which readers differ")
        if s["sample"]["drawn"]:
            read = f"{s['sample']['signed']} of {s['sample']['drawn']} studies signed"
            typer.echo(f"random-audit sample: {read}; {s['audit_images']} images in audit/")
        for reason, count in s["refused"].items():
            typer.echo(f"{count} left out: {reason}; see {found.version / 'dataset.json'}")


@curate.command("suspects")
def list_suspects(
    data: Data,
    out: Annotated[Path | None, typer.Option(help="CSV file to write; default: print.")] = None,
    task: Annotated[str | None, typer.Option(help="Task; default: that of the newest version.")] = None,
    site: _Site = None,
    as_json: Json = False,
) -> None:
    """List labels that deserve a second look: where readers and a model are far apart, or readers differ.

    Example: `wetread curate suspects --data clinic --out suspects.csv`
    """
    from dataclasses import asdict

    from wetread.improve import suspects

    with clinic(data, site) as (database, _):
        found = suspects.find(database, _task(data, task), site)
    if out is not None:
        suspects.write(found, out)
    if as_json:
        typer.echo(json.dumps([asdict(suspect) for suspect in found], indent=1))
    elif out is not None:
        typer.echo(f"{out}: {len(found)} labels to look at again")
    else:
        for s in found:
            said = {1: "present", 0: "absent", -1: "readers differ"}[s.label]
            why = "" if s.probability is None else f"\t{s.model} {s.probability:.3f}"
            typer.echo(f"{s.link}\t{s.finding}\t{said}{why}")


@curate.command("export-label-studio")
def export_label_studio(
    out: Annotated[Path, typer.Argument(help="Folder to write; it must be new.")],
    data: Data,
    task: Annotated[str | None, typer.Option(help="Task; default: that of the newest version.")] = None,
    site: _Site = None,
    only_suspects: Annotated[bool, typer.Option("--suspects", help="Only studies with a suspected label.")] = False,
    predictions: Annotated[
        bool, typer.Option("--predictions", help="Show what models said; without it, it is a second, blind read.")
    ] = False,
    prefix: Annotated[
        str, typer.Option(help="What stands before an image's name in the tasks.")
    ] = "/data/local-files/?d=images/",
) -> None:
    """Write signed studies as tasks for Label Studio, without the patients: images, tasks.json and config.xml.

    Example: `wetread curate export-label-studio second --suspects --data clinic`
    """
    from wetread.clinic.archive import open_archive
    from wetread.improve import label_studio, suspects
    from wetread.radiograph.read import Limits

    settings = _settings()
    with clinic(data, site) as (database, _):
        chosen = _task(data, task)
        only = {s.study for s in suspects.find(database, chosen, site)} if only_suspects else None
        count, refused = label_studio.write(
            database,
            open_archive(data, settings),
            data,
            out,
            chosen,
            site=site,
            only=only,
            predictions=predictions,
            prefix=prefix,
            limits=Limits.of(settings),
            actor=actor(),
        )
    typer.echo(f"{out}: {count} tasks" + (f"; {refused} images left out" if refused else ""))
