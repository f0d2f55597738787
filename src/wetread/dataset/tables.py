"""What the readers of collections share: label tables found by name, columns brought into the manifest's form."""

from __future__ import annotations

import gzip
import io
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl

from wetread.dataset import files
from wetread.errors import DatasetError
from wetread.findings import PRESENT, Task
from wetread.radiograph.read import Limits

COLUMNS = {
    "image": pl.String,
    "patient": pl.String,
    "study": pl.String,
    "view": pl.String,
    "sex": pl.String,
    "age_years": pl.Float32,
    "split": pl.String,
    "source": pl.String,
}
PLACE = ("path", "file", "member", "bytes")
_IMAGES = r"(?i)([^/]+)\.(?:png|jpe?g|webp|tiff?|dcm|dicom)$"
_OLDEST_YEARS = 120


def find(listed: pl.DataFrame, pattern: str) -> list[str]:
    """Return the distinct names of the collection's files that match a pattern as a whole, sorted."""
    names = listed["path"].str.split("/").list.last().unique().sort()
    return [name for name in names if re.fullmatch(pattern, name)]


def raw(listed: pl.DataFrame, name: str) -> tuple[str, bytes] | None:
    """Return the place and the bytes of the first file of this name in the collection, or at this path."""
    match = listed.filter(pl.col("path").str.split("/").list.last() == name)
    if match.is_empty() and not Path(name).is_file():
        return None
    file, member = (name, None) if match.is_empty() else match.select("file", "member").row(0)
    return file, files.read(file, member)


def text(listed: pl.DataFrame, name: str) -> str | None:
    """Return the text of the first file of this name in the collection, or at this path; ``.gz`` is unpacked.

    Raises
    ------
    DatasetError
        For a file that is no gzip archive although its name says so, or no UTF-8 text.
    """
    if (found := raw(listed, name)) is None:
        return None
    file, data = found
    try:
        return (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8-sig")
    except (UnicodeDecodeError, OSError, EOFError, ValueError) as error:
        raise DatasetError(f"{file}: {name}: not UTF-8 text: {error}") from None
    except Exception as error:  # zlib.error has no public base
        raise DatasetError(f"{file}: {name}: damaged: {error}; download it again") from None


def table(listed: pl.DataFrame, names: Iterable[str], root: Path, *, required: bool) -> pl.DataFrame | None:
    """Return the first table of these names, in the collection or by path, every column as text.

    Raises
    ------
    DatasetError
        For a file that is no CSV table, or when there is none and one is `required`.
    """
    names = tuple(names)
    for name in names:
        if (found := text(listed, name)) is None:
            continue
        try:
            rows = pl.read_csv(io.StringIO(found), infer_schema=False, truncate_ragged_lines=True)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            raise DatasetError(f"{root}: {name}: not a CSV table: {str(error).splitlines()[0]}") from None
        return rows.rename({column: column.strip() for column in rows.columns})
    if required:
        raise DatasetError(f"{root}: no label table {' or '.join(names) or 'Data_Entry_2017*.csv'}")
    return None


def needed(
    listed: pl.DataFrame, name: str, columns: Sequence[str], root: Path, other: str | None = None
) -> pl.DataFrame:
    """Return a table, packed by gzip or not, that must be there and have these columns.

    Parameters
    ----------
    other : str, optional
        Take the table of this name, or at this path, instead.

    Raises
    ------
    DatasetError
        When the table or a column is missing.
    """
    rows = table(listed, (other,) if other else (name, f"{name}.gz"), root, required=True)
    assert rows is not None
    if absent := [column for column in columns if column not in rows.columns]:
        raise DatasetError(f"{root}: {other or name} has no column {absent[0]!r}")
    return rows


def images(listed: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the pictures of a collection with their names without ending as `key`, and refusals of second ones."""
    return first_of_each(listed.with_columns(key=pl.col("path").str.extract(_IMAGES)).drop_nulls("key"))


def first_of_each(images: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split images by whether they are the first of their `key`; the others are refused."""
    first = pl.col("key").is_first_distinct()
    again = leftover(images.filter(~first), "duplicate: an image before it has the same key")
    return images.filter(first).select("key", *PLACE), again


def leftover(images: pl.DataFrame, reason: str) -> pl.DataFrame:
    """Return images that are refused for one reason."""
    return images.select("file", image="path").with_columns(reason=pl.lit(reason))


def together(
    rows: pl.DataFrame, unlabelled: pl.DataFrame, again: pl.DataFrame, task: Task, extra: Sequence[str] = ()
) -> pl.DataFrame:
    """Return rows and refused images as one table: `COLUMNS`, `extra`, findings, `PLACE` and `reason`."""
    missing = [name for name in COLUMNS if name not in rows.columns]
    rows = rows.with_columns(pl.lit(None, COLUMNS[name]).alias(name) for name in missing)
    rows = rows.select(*COLUMNS, *extra, *task.findings, *PLACE, "reason")
    return pl.concat([rows, unlabelled, again], how="diagonal")


def first_reason(*cases: tuple[pl.Expr, pl.Expr]) -> pl.Expr:
    """Return the reason of the first case that holds, or null."""
    return pl.coalesce(pl.when(condition).then(reason) for condition, reason in cases)


def exclusive(rows: pl.DataFrame, task: Task) -> pl.DataFrame:
    """Refuse rows of an exclusive task that show no class or two; what is shown excludes the other classes.

    Rows of another task are returned as they are.
    """
    if not task.exclusive:
        return rows
    present = [(pl.col(finding) == PRESENT).fill_null(False) for finding in task.findings]
    shown = pl.sum_horizontal(present)
    named = pl.concat_list(
        pl.when(there).then(pl.lit(finding)) for there, finding in zip(present, task.findings, strict=True)
    )
    reason = first_reason(
        (shown == 0, pl.lit(f"no class: certainly none of {', '.join(task.findings)}")),
        (shown > 1, pl.format("contradiction: {}", named.list.drop_nulls().list.join(" and "))),
    )
    values = [there.cast(pl.Int8).alias(finding) for there, finding in zip(present, task.findings, strict=True)]
    return rows.with_columns(*values, reason=pl.coalesce("reason", reason))


def headers(images: pl.DataFrame) -> pl.DataFrame:
    """Return age, sex and view of images as their DICOM headers tell them, and null for other pictures.

    Parameters
    ----------
    images : DataFrame
        With `key` and `PLACE`.

    Returns
    -------
    DataFrame
        `key`, `age_years`, `sex`, `view`.
    """
    told = [
        (key, *facts)
        for key, path, file, member in images.select("key", *PLACE[:3]).iter_rows()
        if path.lower().endswith((".dcm", ".dicom")) and (facts := _header(file, member))
    ]
    schema = {"key": pl.String, "age_years": pl.Float32, "sex": pl.String, "view": pl.String}
    return pl.DataFrame(told, schema=schema, orient="row")


def _header(file: str, member: str | None) -> tuple[float | None, str | None, str | None] | None:
    import pydicom  # takes half a second

    from wetread.radiograph import dicom

    tags = ["PatientAge", "PatientSex", "PatientBirthDate", "StudyDate"]
    tags += ["ViewPosition", "ViewCodeSequence", "SeriesDescription"]
    try:
        stream = Path(file) if member is None else io.BytesIO(files.read(file, member, Limits().max_bytes))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(tags))
            sex = str(header.get("PatientSex", "")).strip().upper()
            return dicom.age_years(header), sex if sex in ("M", "F", "O") else None, dicom.view(header)
    except Exception:  # hostile bytes can raise anything; packing refuses the file with the reason
        return None


def among(column: str, *values: str) -> pl.Expr:
    """Return whether a column holds one of the values."""
    return pl.col(column).is_in(values)


def sex(column: str) -> pl.Expr:
    """Return `sex` by the first letter of a column, null for what is none."""
    letter = pl.col(column).str.strip_chars().str.slice(0, 1).str.to_uppercase()
    return pl.when(letter.is_in(["M", "F", "O"])).then(letter).alias("sex")


def years(column: str) -> pl.Expr:
    """Return an age in years from text: ``58``, or ``058Y``, ``011M``, ``004D`` as the first NIH release has it."""
    words = pl.col(column).str.strip_chars()
    per_year = words.str.extract("([MD])$").replace_strict({"M": 12.0, "D": 365.25}, default=1.0)
    return words.str.extract(r"^(\d+(?:\.\d+)?)[YMD]?$").cast(pl.Float64) / per_year


def age(column: str) -> pl.Expr:
    """Return `age_years` from the text of a column."""
    return years(column).cast(pl.Float32).alias("age_years")


def bad_age(column: str) -> tuple[pl.Expr, pl.Expr]:
    """Return the case for `first_reason` that a column holds something that is neither an age nor blank."""
    blank = pl.col(column).str.strip_chars().fill_null("") == ""
    return ~blank & (years(column).is_null() | (years(column) > _OLDEST_YEARS)), pl.format("bad age: '{}'", column)
