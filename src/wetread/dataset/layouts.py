"""How the files of the public collections are laid out: label tables and folder names to rows.

A reader takes the listed files, the task (or None), the name of another label table (or None) and the root, and returns
rows with a `reason` column (null: fine) and the task.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections import Counter
from pathlib import Path

import polars as pl

from wetread.dataset import demographics, files, labels, tables
from wetread.dataset.tables import COLUMNS, PLACE
from wetread.errors import DatasetError
from wetread.findings import CHEXPERT, COVID, NIH, PNEUMONIA, Task
from wetread.radiograph.read import Limits

_MOST_CLASSES = 64
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "valid",
    "valid": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}


# --- CheXpert ---------------------------------------------------------------------------------------------------------

_CHEXPERT_TABLES = {
    "train": ("train.csv",),
    "valid": ("valid.csv", "val_labels.csv"),
    "test": ("test.csv", "test_labels.csv", "groundtruth.csv"),
}
# The published batches drop "train/" and put their own name first; from the patient on, all layouts agree.
_CHEXPERT_KEY = r"(patient\d+/study\d+/[^/.]+\.[A-Za-z]+)$"
_CHEXPERT_STUDY = r"(patient\d+/study\d+)"


def chexpert(listed: pl.DataFrame, task: Task | None, other: str | None, root: Path) -> tuple[pl.DataFrame, Task]:
    """Read ``train.csv``, ``valid.csv``, ``test.csv``; images by patient, study and view in folders or batches."""
    task = task or CHEXPERT
    images = listed.with_columns(key=pl.col("path").str.extract(_CHEXPERT_KEY)).drop_nulls("key")
    images, again = tables.first_of_each(images)
    parts = []
    for split, names in _CHEXPERT_TABLES.items():
        names = (other,) if other and split == "train" else names
        table = tables.table(listed, names, root, required=bool(other) and split == "train")
        if table is None:
            continue
        if missing := [finding for finding in task.findings if finding not in table.columns]:
            raise DatasetError(f"{root}: the {split} table has no column {missing[0]!r} of task {task.name!r}")
        if "Path" in table.columns:
            table = table.with_columns(key=pl.col("Path").str.extract(_CHEXPERT_KEY))
        elif "Study" in table.columns:  # the test set's ground truth is one row a study
            table = table.with_columns(study=pl.col("Study").str.extract(_CHEXPERT_STUDY))
            of_study = images.select("key", study=pl.col("key").str.extract(_CHEXPERT_STUDY))
            table = table.join(of_study, on="study", how="left").drop("study").rename({"Study": "Path"})
        else:
            raise DatasetError(f"{root}: the {split} table has neither a column 'Path' nor 'Study'")
        optional = [name for name in ("Sex", "Age", "Frontal/Lateral", "AP/PA") if name not in table.columns]
        table = table.with_columns(pl.lit(None, pl.String).alias(name) for name in optional)
        columns = ("key", "Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *task.findings)
        parts.append(table.select(*columns).with_columns(split=pl.lit(split)))
    if not parts:
        raise DatasetError(f"{root}: no label table (train.csv, valid.csv or test.csv); give the collection's root")
    rows = pl.concat(parts)
    unlabelled = tables.leftover(images.join(rows, on="key", how="anti"), "unlabelled: no table has a row for it")
    side = pl.coalesce(pl.col("Frontal/Lateral").str.to_lowercase(), pl.col("key").str.extract("_(frontal|lateral)"))
    bad = [(labels.is_bad(f), pl.format(f"unknown label: {f} = '{{}}'", f)) for f in task.findings]
    rows = (
        rows.join(images, on="key", how="left")
        .with_columns(tables.sex("Sex"), tables.age("Age"))
        .with_columns(
            image=pl.coalesce(pl.format("{}/{}", "split", "key"), pl.format("{}/{}", "split", "Path"), pl.lit("?")),
            patient=pl.col("key").str.extract(r"^(patient\d+)"),
            study=pl.col("key").str.extract(_CHEXPERT_STUDY),
            view=pl.when(side == "lateral")
            .then(pl.lit("LATERAL"))
            .when(tables.among("AP/PA", "AP", "PA"))
            .then("AP/PA"),
            reason=tables.first_reason(
                (pl.col("key").is_null() & pl.col("file").is_null(), pl.lit("missing file: no image for this row")),
                tables.bad_age("Age"),
                *bad,
            ),
        )
        .with_columns(labels.parse(finding) for finding in task.findings)
    )
    rows, added = demographics.join(rows, listed, root)
    return tables.together(rows, unlabelled, again, task, added), task


# --- NIH ChestX-ray14 -------------------------------------------------------------------------------------------------


def nih(listed: pl.DataFrame, task: Task | None, other: str | None, root: Path) -> tuple[pl.DataFrame, Task]:
    """Read ``Data_Entry_2017*.csv`` and the published lists of images; images by name, wherever they lie."""
    task = task or NIH
    known = (*NIH.findings, "No Finding")
    if missing := [finding for finding in task.findings if finding not in known]:
        raise DatasetError(f"task {task.name!r}: {missing[0]!r} is no NIH label; these are {', '.join(known)}")
    entries = [name.rsplit("/", 1)[-1] for name in listed["path"] if re.search(r"(^|/)Data_Entry[^/]*\.csv$", name)]
    table = tables.table(listed, (other,) if other else tuple(sorted(set(entries))), root, required=True)
    assert table is not None
    table = table.rename({"Patient Sex": "Patient Gender"}, strict=False)
    wanted = ("Image Index", "Finding Labels", "Follow-up #", "Patient Age", "Patient Gender", "View Position")
    if absent := [name for name in wanted if name not in table.columns]:
        raise DatasetError(f"{root}: the label table has no column {absent[0]!r}; it is not Data_Entry_2017*.csv")
    names = pl.col("path").str.extract(r"([^/]+)$")
    images = listed.filter(pl.col("path").str.contains(r"(?i)\.(png|jpe?g|dcm)$")).with_columns(key=names)
    images, again = tables.first_of_each(images)
    unlabelled = tables.leftover(
        images.join(table, left_on="key", right_on="Image Index", how="anti"), "unlabelled: no table has a row for it"
    )
    published = [
        pl.DataFrame({"key": text.split(), "split": split}, schema={"key": pl.String, "split": pl.String})
        for name, split in (("train_val_list.txt", "train"), ("test_list.txt", "test"))
        if (text := tables.text(listed, name)) is not None
    ]
    splits = pl.concat(published or [pl.DataFrame(schema={"key": pl.String, "split": pl.String})]).unique("key")
    found = pl.col("Finding Labels").fill_null("").str.split("|").list.eval(pl.element().str.strip_chars())
    unknown = found.list.set_difference(list(known))
    rows = (
        table.select(key="Image Index", **{name: pl.col(name) for name in wanted})
        .join(images, on="key", how="left")
        .join(splits, on="key", how="left")
        .with_columns(tables.sex("Patient Gender"), tables.age("Patient Age"), found=found, unknown=unknown)
        .with_columns(
            image="key",
            patient=pl.col("key").str.extract(r"^(\d{8})"),
            view=pl.when(tables.among("View Position", "PA", "AP")).then("View Position"),
        )
        .with_columns(
            study=pl.format("{}-{}", "patient", pl.col("Follow-up #").fill_null("")),
            reason=tables.first_reason(
                (pl.col("patient").is_null(), pl.lit("unknown patient: the name does not begin with eight digits")),
                (
                    (pl.col("unknown").list.len() > 0) | (pl.col("found").list.len() == 0),
                    pl.format("unknown label: '{}'", pl.col("Finding Labels").fill_null("")),
                ),
                (
                    pl.col("found").list.contains("No Finding") & (pl.col("found").list.len() > 1),
                    pl.format("contradiction: '{}'", "Finding Labels"),
                ),
                tables.bad_age("Patient Age"),
            ),
        )
        .with_columns(pl.col("found").list.contains(f).cast(pl.Int8).alias(f) for f in task.findings)
    )
    return tables.together(rows, unlabelled, again, task), task


# --- a folder per class -----------------------------------------------------------------------------------------------

# Kermany's names count bacterial and viral pneumonia apart: 979 numbers occur as both and are different children.
_KERMANY = (
    (re.compile(r"person(\d+)_(bacteria|virus)_"), r"\2-\1"),
    (re.compile(r"((?:NORMAL2-)?IM-\d+)-"), r"\1"),
    (re.compile(r"(BACTERIA|VIRUS|NORMAL)-(\d+)-"), r"\1-\2"),  # the names of the Mendeley release, version 3
)
_SPELLINGS = {"covid": "covid19", "turberculosis": "tuberculosis", "tb": "tuberculosis", "nofinding": "normal"}


def kermany(listed: pl.DataFrame, task: Task | None, other: str | None, root: Path) -> tuple[pl.DataFrame, Task]:
    """Read a folder per class, with the patient in the file name."""
    rows, task = folders(listed, task, other, root)
    known = pl.Series([_kermany_patient(image) is not None for image in rows["image"]], dtype=pl.Boolean)
    unknown = pl.lit("unknown patient: the name follows none of the collection's patterns")
    # The published validation folder has 16 images: too few to be one, so they join the training images.
    split = pl.when(pl.col("split") == "valid").then(pl.lit("train")).otherwise("split")
    reason = pl.coalesce("reason", pl.when(~known).then(unknown))
    return rows.with_columns(view=pl.lit("AP"), split=split, reason=reason), task


def folders(listed: pl.DataFrame, task: Task | None, other: str | None, root: Path) -> tuple[pl.DataFrame, Task]:
    """Read a folder per class, with or without a folder per split above it."""
    if other:
        raise DatasetError(f"{root}: labels {other!r}: this kind of collection has its labels in the folder names")
    task = task or _infer(listed, root)
    by_name = {_plain(finding): finding for finding in task.findings}
    out = []
    for path, file, member, size in listed.iter_rows():
        *above, name = path.split("/")
        at = next((i for i in range(len(above) - 1, -1, -1) if _plain(above[i]) in by_name), None)
        start = at if at is not None else 0
        split_at = next((i for i in range(start - 1, -1, -1) if above[i].lower() in _SPLITS), None)
        image = "/".join([*above[split_at if split_at is not None else start :], name])
        finding = by_name[_plain(above[at])] if at is not None else None
        reason = None
        if not above:
            reason = "no class: not in a class folder"
        elif finding is None:
            reason = f"unknown label: folder {above[-1]!r} is no finding of task {task.name!r}"
        split = _SPLITS[above[split_at].lower()] if split_at is not None else None
        patient = _kermany_patient(image) or _dicom_patient(name, file, member) or name.rsplit(".", 1)[0]
        out.append((image, patient, name.rsplit(".", 1)[0], split, finding, path, file, member, size, reason))
    columns = ("image", "patient", "study", "split", "finding", *PLACE, "reason")
    schema = dict.fromkeys(columns, pl.String) | {"bytes": pl.Int64}
    rows = pl.DataFrame(out, schema=schema, orient="row")
    rows = _join_identical(rows)
    rows = rows.with_columns(
        *[(pl.col("finding") == finding).cast(pl.Int8).alias(finding) for finding in task.findings],
        *[pl.lit(None, dtype).alias(name) for name, dtype in COLUMNS.items() if name not in rows.columns],
    )
    return rows.select(*COLUMNS, *task.findings, *PLACE, "reason"), task


def _kermany_patient(image: str) -> str | None:
    name = image.rsplit("/", 1)[-1]
    for pattern, key in _KERMANY:
        if match := pattern.match(name):
            return match.expand(key)
    return None


def _dicom_patient(name: str, file: str, member: str | None) -> str | None:
    """Return a pseudonym of the patient whom a DICOM file names, or None; identifiers stay out of the manifest."""
    if not name.lower().endswith((".dcm", ".dicom", ".ima")) and "." in name:
        return None
    import pydicom  # takes half a second

    try:
        stream = Path(file) if member is None else io.BytesIO(files.read(file, member, Limits().max_bytes))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            identifier = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=["PatientID"]).get("PatientID")
    except Exception:  # hostile bytes can raise anything; packing refuses the file with the reason
        return None
    return f"dicom-{hashlib.sha256(str(identifier).encode()).hexdigest()[:16]}" if identifier else None


def _plain(name: str) -> str:
    letters = "".join(character for character in name.casefold() if character.isalnum())
    return _SPELLINGS.get(letters, letters)


def _infer(listed: pl.DataFrame, root: Path) -> Task:
    """Return the task that the class folders spell: a built-in one, or one exclusive finding per folder."""
    parents = {path.split("/")[-2] for path in listed["path"] if "/" in path}
    classes = sorted(name for name in parents if name.lower() not in _SPLITS)
    if not 2 <= len(classes) <= _MOST_CLASSES:
        raise DatasetError(
            f"{root}: {len(classes)} class folders found, need 2 to {_MOST_CLASSES}; lay the images out as a folder "
            "per class, or name the findings with a task file"
        )
    for known in (PNEUMONIA, COVID):
        if {_plain(name) for name in classes} == {_plain(finding) for finding in known.findings}:
            return known
    spelled: dict[str, str] = {}
    for name in classes:
        spelled.setdefault(_plain(name), name)
    normal = spelled.get("normal")
    names = sorted(spelled.values(), key=lambda name: (name != normal, name))
    return Task("folders", tuple(names), exclusive=True, normal=normal)


def _join_identical(rows: pl.DataFrame) -> pl.DataFrame:
    """Give patients that share a byte-identical file one key, and refuse identical files of different classes."""
    alike: dict[str, list[int]] = {}
    sizes = Counter(rows["bytes"])
    for at, (_, file, member, size, reason) in enumerate(rows.select(*PLACE, "reason").iter_rows()):
        if sizes[size] > 1 and reason is None:
            try:
                alike.setdefault(hashlib.sha256(files.read(file, member)).hexdigest(), []).append(at)
            except DatasetError:
                continue  # packing will refuse it, with the reason
    patients, findings, images = rows["patient"].to_list(), rows["finding"].to_list(), rows["image"].to_list()
    reasons = rows["reason"].to_list()
    leader: dict[str, str] = {}

    def lead(patient: str) -> str:
        while patient in leader:
            patient = leader[patient]
        return patient

    for group in alike.values():
        if len({findings[at] for at in group}) > 1:
            for at in group:
                twin = next(i for i in group if findings[i] != findings[at])
                reasons[at] = f"contradiction: byte-identical to {images[twin]}"
        first, *others = sorted({lead(patients[at]) for at in group})
        leader.update(dict.fromkeys(others, first))
    return rows.with_columns(
        patient=pl.Series([lead(patient) for patient in patients], dtype=pl.String),
        reason=pl.Series(reasons, dtype=pl.String),
    )
