"""`wetread curate`: what readers signed becomes a new version of a dataset, without the patients.

A version is a packed dataset of all reviewed cases so far, which names the version before it. Beside it lie

- ``lineage.jsonl``: of each study who said what, with which model's word, under pseudonyms;
- ``sides.json``: who trains and who judges, from version to version (`sides`);
- ``hard/``: batches of cases that a model got wrong or was unsure of;
- ``audit/``: the random-audit sample, labelled by what was said before any model's word was known.

Versions stand in ``DATA/datasets``, numbered. The same reviews give the same version; without new ones none is made.
Versions for one site, population and kind of views follow each other; sides hold for all versions of the folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl

from wetread import __version__
from wetread.clinic import audit, export, pseudonyms, sample
from wetread.clinic.archive import Archive
from wetread.clinic.pseudonyms import Pseudonyms
from wetread.clinic.store import Store
from wetread.dataset import join, parts
from wetread.dataset.dataset import INFO, Dataset, canonical
from wetread.dataset.pack import pack
from wetread.dataset.sources import SOURCES, Collection
from wetread.dataset.tables import COLUMNS
from wetread.errors import ConfigError
from wetread.findings import PRESENT, Task
from wetread.improve import cases, consensus, hard_cases, record
from wetread.improve.lock import alone
from wetread.improve.sides import Sides
from wetread.radiograph.read import Limits
from wetread.radiograph.suitability import Population

FOLDER, LINEAGE, AUDIT = "datasets", "lineage.jsonl", "audit"
_SAMPLING = ("audit", "hard", "routine")
_LASTING = "BURNED_IN:"  # why an image is left out; of other reasons, reading or a model may fare better next time
_SOURCE = SOURCES["reviews"]


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes
    ----------
    parent : Path or None
        The version before; by default the newest of the data folder for the same site, population and views, and
        with `like` of its task and transform.
    like : Path or None
        A packed dataset whose task and transform to take; needed for the first version.
    out : Path or None
        A new folder; by default the next number in the data folder.
    site : str or None
        Only this site's studies.
    valid, test : float or None
        Shares of new patients; by default as for the parent, else a tenth and a fifth.
    views : {"frontal", "lateral", "all"}
        As of `wetread pack`.
    workers : int
        Processes that decode.
    population : {"adult", "child", "phantom", "any"}
        Only studies about which a model for it speaks; see `cases.served`.
    """

    parent: Path | None = None
    like: Path | None = None
    out: Path | None = None
    site: str | None = None
    valid: float | None = None
    test: float | None = None
    views: str = "frontal"
    workers: int = 2
    population: Population = "any"


@dataclass(frozen=True)
class Outcome:
    """What came of it: the newest version (None when there is none at all), and whether it was made just now."""

    version: Path | None
    made: bool
    summary: dict[str, Any]


@dataclass(frozen=True)
class _Image:
    """One image that may go into the dataset: the line of its study, its row of the manifest, how to write it."""

    line: dict[str, Any]
    row: dict[str, Any]
    write: Callable[[Path], str | None]


def versions(data: Path) -> list[Path]:
    """Return the versions of a data folder, oldest first."""
    found = [path for path in (data / FOLDER).glob("[0-9]*") if path.name.isdecimal() and (path / INFO).is_file()]
    return sorted(found, key=lambda path: int(path.name))


def run(
    database: Store,
    archive: Archive,
    data: Path,
    request: Request,
    *,
    limits: Limits | None = None,
    actor: str = "command line",
) -> Outcome:
    """Make the next version, if there is anything new.

    Parameters
    ----------
    data : Path
        The data folder, where the key of pseudonyms and the versions lie.
    limits : Limits, optional
        Of each file; with `seconds` they are read and de-identified in a process apart.

    Raises
    ------
    ConfigError
        When there is nothing to take task and transform from, the key is another one than the parent's, another
        `curate` is at work, or an option cannot be.
    DatasetError
        When parent or `like` cannot be used, or nothing new can be packed.
    ArchiveError
        When the archive cannot be read now: no version is made, and the next run tries again.
    """
    if request.views not in ("frontal", "lateral", "all"):
        raise ConfigError(f"views = {request.views!r}: use frontal, lateral, all")
    if request.population not in get_args(Population):
        raise ConfigError(f"population = {request.population!r}: use {', '.join(get_args(Population))}")
    with alone(data / FOLDER, "curate"):
        there = versions(data)
        newest = Dataset.open(there[-1]) if there else None
        like = Dataset.open(request.like) if request.like else None
        if not (like or request.parent or there):
            raise ConfigError("the first version needs --like, a packed dataset whose task and transform it takes")
        secret = pseudonyms.key(data)
        site = Pseudonyms(secret, request.site).name("site", request.site)[:8] if request.site else None
        kind = {"views": request.views, "population": request.population, "site": site}
        parent = Dataset.open(request.parent) if request.parent else _newest(there, kind, like)
        model = parent or like or newest
        assert model is not None
        if parent and like:
            _same(like, parent)
        shares = _shares(request, parent)
        mark = Pseudonyms(secret, "").name("key", "curate")
        known = [one for one in (newest, parent) if one is not None]  # the newest knows more than an older parent
        for dataset in known:
            if dataset.info["collection"].get("key") != mark:
                raise ConfigError(
                    f"{dataset.path}: was made with another {pseudonyms.FILE}; restore it, or patients could change "
                    "sides"
                )
        images, lines = _gather(database, archive, secret, model.task, request, limits or Limits())
        before = Sides()
        for dataset in known:
            before = before.with_those_of(Sides.read(dataset.path))
        lines, after = _sided(lines, before, shares)
        content = b"".join(canonical(line) for line in lines)
        sha256 = hashlib.sha256(content).hexdigest()
        if parent and parent.info["collection"]["lineage"]["sha256"] == sha256:
            return Outcome(parent.path, False, parent.info["collection"]["lineage"])
        if not lines and parent is None:
            return Outcome(None, False, {"studies": 0})
        number = int(there[-1].name) + 1 if there else 1
        out = request.out or data / FOLDER / f"{number:04d}"
        about = _about(lines, sha256, mark, parent, {**kind, **shares})
        with join.draft(out) as folder:
            dataset = _fill(folder, images, lines, model, parent, about, request)
            (folder / LINEAGE).write_bytes(content)
            after.write(folder)
            _audit_set(folder, dataset, lines, model.task)
            hard_cases.write(dataset, lines)
            with database.read() as connection:
                of_sample = sample.size(connection, request.site, cases.served(request.population))
            summary = _summary(dataset, about) | {"sample": of_sample, "population": request.population}
            with database.write() as connection:  # before anybody can see it
                detail = {"sha256": dataset.hash, "parent": about["parent"], **summary}
                audit.record(connection, request.site or "all", actor, "dataset.curated", dataset.hash[:32], detail)
            _write_record(data / "improve" / "curate" / dataset.hash[:16], out, dataset.hash, summary)
    return Outcome(out, True, summary)


# --- what goes in -----------------------------------------------------------------------------------------------------


def _gather(
    database: Store, archive: Archive, secret: bytes, task: Task, request: Request, limits: Limits
) -> tuple[dict[str, _Image], list[dict[str, Any]]]:
    """Return the images by pseudonym, and a line a study in the order of pseudonyms: that of arrival would tell."""
    images: dict[str, _Image] = {}
    lines = []
    for case in cases.signed(database, request.site, request.population):
        if not case.images:
            continue
        names = Pseudonyms(secret, case.study.site)
        labels, disputed = case.labels(task)
        line = cases.line(case, names, task, labels, disputed)
        blind = consensus.blind_labels(case.readings, task)
        line["blind_labels"] = None if blind is None else {f: blind[f] for f in task.findings if f in blind}
        chosen = _SAMPLING.index("audit" if case.drawn is not None else "routine")
        line["sampling"] = "hard" if chosen and case.is_hard(labels, disputed) else _SAMPLING[chosen]
        lines.append(line)
        for image, codes in case.images:
            row = export.about(case.study, image, names)

            def write(folder: Path, case=case, row=row, image=image, codes=codes, names=names) -> str | None:  # type: ignore[no-untyped-def]
                return export.write(folder, row, image, case.study, codes, archive, names, limits)

            images[row["image"]] = _Image(line, row, write)
    return images, sorted(lines, key=lambda line: (str(line["study"]), str(line["key"])))


def _sided(
    lines: list[dict[str, Any]], before: Sides, shares: Mapping[str, float]
) -> tuple[list[dict[str, Any]], Sides]:
    """Write into each line on which side its patient is; none for one who turned out to be on two."""
    patients = {line["key"]: line["patient"] for line in lines}
    sampled = frozenset(line["patient"] for line in lines if line["drawn"] is not None)
    found, after = before.assign(patients, sampled, valid=shares["valid"], test=shares["test"])
    return [line | {"split": found.get(line["patient"])} for line in lines], after


def _about(
    lines: list[dict[str, Any]], sha256: str, mark: str, parent: Dataset | None, selection: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "kind": "reviews",
        "title": _SOURCE.title,
        "licence": _SOURCE.licence,
        "attribution": _SOURCE.attribution,
        "url": _SOURCE.url,
        "patient_key": _SOURCE.patient,
        "selection": dict(selection),
        "parent": parent.hash if parent else None,
        "key": mark,
        "lineage": {
            "sha256": sha256,
            "studies": len(lines),
            "readings": sum(len(line["readings"]) for line in lines),
            "readers": len({reading["reader"] for line in lines for reading in line["readings"]}),
            "disputed": sum(bool(line["disputed"]) for line in lines),
            "sampling": {name: sum(line["sampling"] == name for line in lines) for name in _SAMPLING},
            # Drawn, but of patients who trained before there was a draw: they cannot judge.
            "sampled_in_training": sum(
                line["sampling"] == "audit" and line["split"] not in (None, "test") for line in lines
            ),
        },
    }


# --- the dataset ------------------------------------------------------------------------------------------------------


def _fill(
    folder: Path,
    images: Mapping[str, _Image],
    lines: list[dict[str, Any]],
    model: Dataset,
    parent: Dataset | None,
    about: dict[str, Any],
    request: Request,
) -> Dataset:
    """Write the dataset: what the parent has is taken from it, the rest is de-identified and packed."""
    task, rows, refused = model.task, {}, []
    split = {line["study"]: line for line in lines}
    for name, image in images.items():
        line = split[image.line["study"]]
        values = targets(line["labels"], task)
        if line["split"] is None:
            refused.append({"image": name, "reason": "two sides: its patient turned out to be one who is on another"})
        elif values is None:
            refused.append({"image": name, "reason": f"no class: certainly none of {', '.join(task.findings)}"})
        elif (request.views == "frontal") == (image.row["view"] == "LATERAL") and request.views != "all":
            refused.append({"image": name, "reason": f"wrong view: asked for {request.views}"})
        else:
            rows[name] = _row(image.row, line) | values
    known = set(parent.manifest["image"]) if parent else set()
    given_up = {}  # writing in the picture stays there: not looked for again by the same code
    if parent and parent.info["code_version"] == __version__:
        entries = [entry for entry in parent.info["refused"] if entry["reason"].startswith(_LASTING)]
        given_up = {entry["image"]: entry["reason"] for entry in entries}
    work = folder / "work"
    (work / export.IMAGES).mkdir(parents=True)
    fresh = []
    for name in sorted(rows.keys() - known):
        reason = given_up.get(name) or images[name].write(work)
        if reason is None:
            fresh.append(rows[name] | _place(work / name))
        else:
            refused.append({"image": name, "reason": reason})
    sources = [parent] if parent else []
    if fresh:
        table = pl.DataFrame(fresh, schema=_schema(task) | _PLACED, orient="row")
        collection = Collection(table, [], task, about)
        packed = pack(collection, work / "packed", transform=model.transform, workers=request.workers)
        refused += packed.info["refused"]
        sources.append(packed)
    at = {
        name: (number, row, size)
        for number, source in enumerate(sources)
        for row, (name, *size) in enumerate(source.manifest.select("image", "height", "width").iter_rows())
        if name in rows
    }
    order = sorted(at)
    if not order:
        first = min(refused, key=lambda entry: entry["image"], default={"image": "none", "reason": "nothing is signed"})
        raise ConfigError(f"not one image can be taken; {first['image']}: {first['reason']}")
    manifest = pl.DataFrame([rows[name] for name in order], schema=_schema(task), orient="row").with_columns(
        pl.Series(column, [at[name][2][n] for name in order], dtype=pl.Int32)
        for n, column in enumerate(("height", "width"))
    )
    places = np.array([at[name][:2] for name in order], np.int64)
    join.copy(folder, manifest, sources, places, about, refused)
    shutil.rmtree(work)
    return Dataset.open(folder)


_PLACED = {"path": pl.String, "file": pl.String, "member": pl.String, "bytes": pl.Int64}


def _schema(task: Task) -> dict[str, Any]:
    more = {"site": pl.String, "sampling": pl.String, "blind": pl.Boolean}
    return {**COLUMNS, **dict.fromkeys(task.findings, pl.Int8), **more}


def _row(about: Mapping[str, Any], line: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: about[name] or None for name in ("image", "patient", "study", "view", "sex", "site")}
    age = None if about["age_years"] == "" else float(about["age_years"])
    own = {name: line[name] for name in ("split", "sampling", "blind")}
    return told | own | {"age_years": age, "source": "reviews"}


def _place(file: Path) -> dict[str, Any]:
    return {"path": file.name, "file": str(file), "member": None, "bytes": file.stat().st_size}


def targets(said: Mapping[str, int], task: Task) -> dict[str, int | None] | None:
    """Return what is learnt of a study, by finding; None when the task is exclusive and not exactly one is present."""
    if not task.exclusive:
        return {finding: said.get(finding) for finding in task.findings}
    present = [finding for finding in task.findings if said.get(finding) == PRESENT]
    return {finding: int(finding == present[0]) for finding in task.findings} if len(present) == 1 else None


def _audit_set(folder: Path, dataset: Dataset, lines: list[dict[str, Any]], task: Task) -> None:
    """Write the random-audit sample as a dataset of its own, whose pixels are those of the version."""
    said = {}
    for line in lines:
        judges = line["sampling"] == "audit" and line["split"] == "test" and line["blind_labels"] is not None
        if judges and (values := targets(line["blind_labels"], task)) is not None:
            said[line["study"]] = values
    studies = dataset.manifest["study"].to_list()
    rows = [row for row, study in enumerate(studies) if study in said]
    if not rows:
        return
    columns = [
        pl.Series(finding, [said[studies[row]][finding] for row in rows], dtype=pl.Int8) for finding in task.findings
    ]
    target = folder / AUDIT
    target.mkdir()
    parts.write(target, [(folder, dataset.hash)], np.array([[0, row] for row in rows], np.int64))
    about = dict(dataset.info["collection"]) | {"title": "random-audit sample", "version": dataset.hash}
    join.finish(target, task, dataset.transform, dataset.manifest[rows].with_columns(columns), about)


# --- beside it --------------------------------------------------------------------------------------------------------


def _summary(dataset: Dataset, about: Mapping[str, Any]) -> dict[str, Any]:
    splits = {name: found["images"] for name, found in dataset.info["counts"]["splits"].items()}
    audited = dataset.path / AUDIT
    return {
        **{name: value for name, value in about["lineage"].items() if name != "sha256"},
        "images": len(dataset),
        "patients": dataset.info["counts"]["patients"],
        "splits": splits,
        "refused": dataset.info["refused_by_reason"],
        "audit_images": len(Dataset.open(audited)) if audited.is_dir() else 0,
        "hard": sorted(path.stem for path in (dataset.path / "hard").glob("*.json")),
    }


def _write_record(folder: Path, out: Path, sha256: str, summary: Mapping[str, Any]) -> None:
    """Write what was done, for machines and for people."""
    values = {"version": str(out), "sha256": sha256, "code_version": __version__, **summary}
    lines = [f"# Dataset {out.name}", "", f"`{sha256}`", ""]
    lines += [f"- {name.replace('_', ' ')}: {json.dumps(value)}" for name, value in summary.items()]
    record.write(folder, values, "\n".join(lines) + "\n")


def _shares(request: Request, parent: Dataset | None) -> dict[str, float]:
    """Return the shares of new patients that tune and that judge."""
    usual = parent.info["collection"]["selection"] if parent else {"valid": 0.1, "test": 0.2}
    asked = {"valid": request.valid, "test": request.test}
    shares = {name: float(usual[name] if share is None else share) for name, share in asked.items()}
    if not (min(shares.values()) >= 0 and sum(shares.values()) < 1):
        said = ", ".join(f"{name} = {share:g}" for name, share in shares.items())
        raise ConfigError(f"{said}: shares of 0 or more, together below 1")
    return shares


def _newest(there: list[Path], kind: Mapping[str, Any], like: Dataset | None) -> Dataset | None:
    """Return the newest version of a kind, and of the task and transform of a dataset."""
    for path in reversed(there):
        found = Dataset.open(path)
        selection = {"population": "any", "site": None} | found.info["collection"]["selection"]
        if all(selection.get(key) == value for key, value in kind.items()) and (like is None or _alike(like, found)):
            return found
    return None


def _alike(one: Dataset, other: Dataset) -> bool:
    return one.task.to_dict() == other.task.to_dict() and one.transform == other.transform


def _same(like: Dataset, parent: Dataset) -> None:
    if not _alike(like, parent):
        raise ConfigError(f"{like.path}: its task or transform is not that of {parent.path}; leave one of them out")
