"""`wetread export-learning`: signed studies to a folder that `wetread pack reviews` reads, without the patients.

A folder holds ``images/`` (de-identified DICOM files, and pictures as PNG), ``labels.csv`` (a row an image: pseudonyms,
view, sex, age and what the reader said of each finding), ``refused.csv`` (what was left out, and why) and
``export.json``. Labels are 1 present, 0 absent, -1 uncertain, empty not mentioned:

- *agree* takes what the model had called: likely is present, unlikely absent;
- *disagree* takes the opposite;
- where the model was unsure itself there is nothing to agree with: *agree* is present and *disagree* absent, as the
  page words it;
- *unsure* is uncertain, *added* is present;
- a finding nobody touched stays empty, unless the reader called the study normal: then it is absent.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import cv2
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from wetread import __version__
from wetread.clinic import audit, pseudonyms, store, triage
from wetread.clinic.archive import Archive, ArchiveError
from wetread.clinic.deidentify import OLDEST, deidentify
from wetread.clinic.pseudonyms import Pseudonyms
from wetread.clinic.store import Store
from wetread.errors import ConfigError, ReadError
from wetread.findings import ABSENT, FINDINGS, HARMLESS, NORMAL, PRESENT, UNCERTAIN
from wetread.radiograph import burned_in
from wetread.radiograph.read import Limits, Radiograph, read

LABELS, REFUSED, ABOUT, IMAGES = "labels.csv", "refused.csv", "export.json", "images"
_COLUMNS = ("image", "patient", "study", "view", "sex", "age_years", "site")
# What a model says is no radiograph of a chest teaches nothing about chests.
_UNFIT = frozenset({"UNREADABLE", "TOO_LARGE", "NOT_RADIOGRAPH", "NOT_CHEST", "FOR_PROCESSING"})


@dataclass(frozen=True)
class Summary:
    """What an export holds: numbers of patients, studies, images, and of refused images by reason."""

    patients: int
    studies: int
    images: int
    refused: dict[str, int]
    out: str


def run(
    database: Store,
    archive: Archive,
    data: Path,
    out: Path,
    *,
    site: str | None = None,
    since: datetime | None = None,
    limits: Limits | None = None,
    actor: str = "command line",
    progress: Callable[[int], None] = lambda _: None,
) -> Summary:
    """Export signed studies.

    Parameters
    ----------
    data : Path
        The data folder, where the key of pseudonyms lies.
    out : Path
        The new folder; it appears complete or not at all.
    site : str, optional
        Only this site's studies.
    since : datetime, optional
        Only studies signed at or after this instant.
    limits : Limits, optional
        Of each file; with `seconds` they are read and de-identified in a process apart.
    progress : callable
        Told how many more images are done.

    Raises
    ------
    ConfigError
        When the folder exists, or the key cannot be used.
    ArchiveError
        When the archive cannot be read now.
    """
    if out.exists():
        raise ConfigError(f"{out}: exists; name a new folder")
    secret = pseudonyms.key(data)
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    (draft / IMAGES).mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    refused: list[dict[str, str]] = []
    called: set[str] = set()
    try:
        for study, review, images in _signed(database, site, since):
            names = Pseudonyms(secret, study.site)
            labels = labels_of(review)
            called |= {finding for finding, (answer, _) in review["answers"].items() if answer != "added"}
            for image, codes in images:
                row = about(study, image, names)
                reason = write(draft, row, image, study, codes, archive, names, limits or Limits())
                if reason is None:
                    rows.append({**row, **labels})
                else:
                    refused.append({"image": row["image"], "reason": reason})
                progress(1)
        # In the order of pseudonyms: that of arrival would tell who came when.
        rows.sort(key=lambda row: row["image"])
        # What a reader typed may be anything, names included: only findings that a task or a model knows go out.
        known = {*FINDINGS, *called}
        rows = [{name: value for name, value in row.items() if name in known or name in _COLUMNS} for row in rows]
        findings = _order({finding for row in rows for finding in row} - set(_COLUMNS))
        _table(draft / LABELS, (*_COLUMNS, *findings), rows)
        _table(draft / REFUSED, ("image", "reason"), sorted(refused, key=lambda entry: entry["image"]))
        kinds = Counter(entry["reason"].split(":")[0] for entry in refused)
        count = {name: len({row[name] for row in rows}) for name in ("patient", "study")}
        summary = Summary(count["patient"], count["study"], len(rows), dict(sorted(kinds.items())), str(out))
        contents = {
            "wetread": __version__,
            "profile": "DICOM PS3.15 basic profile, patient characteristics retained",
            "findings": findings,
            **{name: value for name, value in vars(summary).items() if name != "out"},
        }
        (draft / ABOUT).write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        with database.write() as connection:
            detail = {name: value for name, value in vars(summary).items() if name != "out"}
            detail["since"] = since.isoformat() if since else None
            audit.record(connection, site or "all", actor, "learning.exported", "reviews", detail)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return summary


def _signed(
    database: Store, site: str | None, since: datetime | None
) -> Iterator[tuple[Row[Any], dict[str, Any], list[tuple[Row[Any], set[str]]]]]:
    """Yield signed studies with the newest signed review and their images, each with the codes of its refusals."""
    studies, reviews = store.study, store.review
    newest = sa.select(sa.func.max(reviews.c.signed_at)).where(
        reviews.c.study == studies.c.id, reviews.c.state == "signed"
    )
    wanted = sa.select(studies).where(studies.c.reading == "signed").order_by(studies.c.id)
    if site is not None:
        wanted = wanted.where(studies.c.site == site)
    if since is not None:
        wanted = wanted.where(newest.scalar_subquery() >= since)
    with database.read() as connection:
        keys = [row.id for row in connection.execute(wanted.with_only_columns(studies.c.id))]
    for key in keys:
        with database.read() as connection:
            study = connection.execute(sa.select(studies).where(studies.c.id == key)).one()
            review = connection.execute(
                sa.select(reviews)
                .where(reviews.c.study == key, reviews.c.state == "signed")
                .order_by(reviews.c.signed_at.desc())
                .limit(1)
            ).first()
            if review is not None:
                yield study, said(connection, review), images_of(connection, key)


def said(connection: Connection, review: Row[Any]) -> dict[str, Any]:
    """Return what a review says: whether it is `normal`, and its `answers` (finding -> answer and the model's call)."""
    table = store.review_finding
    rows = connection.execute(sa.select(table).where(table.c.review == review.id))
    return {"normal": review.normal, "answers": {row.finding: (row.answer, row.call) for row in rows}}


def images_of(connection: Connection, study: str) -> list[tuple[Row[Any], set[str]]]:
    """Return the images of a study that are displayed, each with the codes of its refusals by models that count."""
    images = store.instance
    rows = connection.execute(
        sa.select(images).where(images.c.study == study, images.c.state == "stored").order_by(images.c.id)
    ).all()
    codes: dict[str, set[str]] = {row.id: set() for row in rows}
    for result in triage.latest(connection, study, list(codes)):
        if result["code"]:
            codes[result["instance"]].add(result["code"])
    return [(row, codes[row.id]) for row in rows]


def labels_of(review: Mapping[str, Any]) -> dict[str, int]:
    """Return what the reader said of each finding; see the text of the module."""
    called = {"likely": PRESENT, "unlikely": ABSENT, "unsure": PRESENT}
    opposite = {"likely": ABSENT, "unlikely": PRESENT, "unsure": ABSENT}
    labels: dict[str, int] = {}
    for finding, (answer, call) in review["answers"].items():
        value = {
            "agree": called.get(call),
            "disagree": opposite.get(call),
            "unsure": UNCERTAIN,
            "added": PRESENT,
        }[answer]
        if value is not None:
            labels[finding] = value
    if review["normal"]:
        for finding in {*FINDINGS, *review["answers"]}:
            labels.setdefault(finding, PRESENT if finding in NORMAL else ABSENT)
    elif any(value == PRESENT for finding, value in labels.items() if finding not in HARMLESS):
        labels |= dict.fromkeys(NORMAL, ABSENT)
    return labels


def about(study: Row[Any], image: Row[Any], names: Pseudonyms) -> dict[str, Any]:
    """Return what goes out about an image beside its labels: pseudonyms, view, sex and age."""
    kind = "dcm" if image.format == "dicom" else "png"
    patient = study.patient_id or f"study {study.id}"  # without an identifier nobody knows whom it belongs to
    age = study.age_years
    return {
        "image": f"{IMAGES}/{names.name('image', f'{image.sop_uid} {image.sha256}')}.{kind}",
        "patient": names.name("patient", patient),
        "study": names.name("study", f"{study.study_uid} {study.patient_id}"),
        "view": image.view if image.view in ("PA", "AP", "LATERAL") else "",
        "sex": study.sex if study.sex in ("M", "F", "O") else "",
        "age_years": "" if age is None else round(min(age, OLDEST), 1 if age < 2 else None),
        "site": names.name("site", study.site)[:8],
    }


def write(
    folder: Path,
    row: Mapping[str, Any],
    image: Row[Any],
    study: Row[Any],
    codes: set[str],
    archive: Archive,
    names: Pseudonyms,
    limits: Limits,
) -> str | None:
    """Write one image without its patient; return why not, where it cannot be.

    Raises
    ------
    ArchiveError
        When the archive cannot be read, which says nothing of the image.
    """
    if unfit := sorted(codes & _UNFIT):
        return f"{unfit[0]}: refused by a model"
    try:
        with archive.open(image.sha256) as file:
            content = file.read(limits.max_bytes + 1)
    except OSError as error:
        raise ArchiveError(
            f"archive: {image.sha256} cannot be read: {error.strerror or type(error).__name__}; "
            "mend the archive (see `wetread verify`) and run it again"
        ) from None
    try:
        radiograph = read(content, name="image", limits=limits)
    except ReadError as error:
        return f"{error.code}: cannot be read"
    if written := burned_in.find(radiograph.pixels):
        left, top, *_ = written[0].box
        return f"BURNED_IN: writing in the picture at {left:.0%}, {top:.0%} from the left and top; look at it"
    if image.format == "dicom":
        try:
            about = {"patient": row["patient"], "age_years": study.age_years, "sex": study.sex}
            clean = deidentify(content, names, **about, limits=limits)
            _same(radiograph, read(clean, name="image", limits=limits))
        except ReadError as error:
            return f"UNREADABLE: {error}"
    else:
        clean = cv2.imencode(".png", radiograph.pixels)[1].tobytes()
    path = folder / row["image"]
    path.write_bytes(clean)
    os.utime(path, (0, 0))
    return None


def _same(before: Radiograph, after: Radiograph) -> None:
    """Raise `ReadError` when the image without its patient is not the image any more."""
    if before.pixels.shape != after.pixels.shape or abs(before.pixels.astype(int) - after.pixels).max() > 257:
        raise ReadError("de-identified, the image looks otherwise; it is left out")


def _order(findings: set[str]) -> list[str]:
    """Return findings in the order of the tasks that know them, the others by name."""
    return [f for f in FINDINGS if f in findings] + sorted(findings - {*FINDINGS})


def _table(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
