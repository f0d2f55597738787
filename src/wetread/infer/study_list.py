"""Which files there are to score, and which of them make a study: a folder, or a list of files or Study UIDs."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from wetread.errors import ReadError
from wetread.infer.files import expand
from wetread.radiograph import headers

FILE = ("file", "path", "image")
STUDY = ("study", "study_uid", "studyinstanceuid")
_SNIFF = 4096  # bytes that tell the format


class Entry(NamedTuple):
    """A file, and the study that it is listed under; one of the two may be empty."""

    study: str
    file: str


def entries(source: Path, listed: Path | None = None) -> list[Entry]:
    """Return what is to be scored.

    Parameters
    ----------
    source : Path
        A file, or a folder.
    listed : Path, optional
        CSV with a column `file` (or `path`, `image`; relative to `source`, or to the list), or `study` (Study Instance
        UIDs of DICOM files in `source`), or both: then `study` is a label that puts files together. What is listed and
        not there has an entry all the same.

    Raises
    ------
    ReadError
        When the source or the list is not there, or the list is none.
    """
    if not source.exists():
        raise ReadError(f"{source}: no such file or folder; give radiographs, a folder of them, or a packed dataset")
    if listed is None:
        return [Entry("", str(path.resolve())) for path in expand([source])]
    rows = table(listed)
    file, study = column(rows, FILE), column(rows, STUDY)
    if file is not None:
        folders = (source if source.is_dir() else source.parent, listed.parent)
        return [Entry(row[study].strip() if study else "", _place(row[file].strip(), folders)) for row in rows]
    if study is None:
        raise ReadError(f"{listed}: has neither a column `file` nor `study`; it has {', '.join(rows[0])}")
    found: dict[str, list[str]] = {}
    for path in expand([source]):
        if uid := study_uid(path):
            found.setdefault(uid, []).append(str(path.resolve()))
    wanted = list(dict.fromkeys(row[study].strip() for row in rows))
    return [Entry(uid, path) for uid in wanted for path in found.get(uid, [""])]


def grouped(found: Iterable[Entry]) -> list[tuple[str, tuple[str, ...]]]:
    """Put the files of a study together; a picture that nobody calls part of one is a study of its own, by its path."""
    studies: dict[str, list[str]] = {}
    for study, file in found:
        key = study or study_uid(Path(file)) or file
        studies.setdefault(key, []).extend([file] if file else [])
    return [(study, tuple(files)) for study, files in studies.items()]


def study_uid(path: Path) -> str | None:
    """Return the Study Instance UID of a DICOM file, None of any other file."""
    import pydicom  # takes half a second

    try:
        with path.open("rb") as stream:
            if headers.sniff(stream.read(_SNIFF)) != "dicom":
                return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=["StudyInstanceUID"])
            return str(header.get("StudyInstanceUID") or "") or None
    except Exception:  # hostile bytes can raise anything; scoring refuses the file with the reason
        return None


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, column names in small letters without what surrounds them.

    Raises
    ------
    ReadError
        When it is not there, no UTF-8 text, empty, or has rows of other lengths than its first.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = [line for line in csv.reader(stream) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ReadError(f"{path}: not a CSV table in UTF-8 ({type(error).__name__})") from None
    if len(lines) < 2:
        raise ReadError(f"{path}: holds no rows under its column names")
    names = [name.strip().lower() for name in lines[0]]
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(names):
            raise ReadError(f"{path}: row {number} has {len(line)} values for {len(names)} columns")
    return [dict(zip(names, line, strict=True)) for line in lines[1:]]


def column(rows: Sequence[dict[str, str]], names: Sequence[str]) -> str | None:
    """Return the first of these columns that a table has."""
    return next((name for name in names if name in rows[0]), None)


def _place(name: str, folders: Iterable[Path]) -> str:
    """Return where a listed file is: as given, or below one of the folders; the first when it is nowhere."""
    places = [folder / name for folder in folders]
    return str(next((place for place in places if place.is_file()), places[0]).resolve()) if name else ""
