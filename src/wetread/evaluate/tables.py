"""Tables of labels, scores and readers' calls as CSV files from anywhere, joined by the names of study and finding.

The files come from other people: column orders differ, rows are in any order, scores exceed 1. What could
make a figure silently wrong is refused by name: a study twice, one that the truth does not know, one
without a score, a column twice, a cell that is no number.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wetread.errors import DatasetError
from wetread.evaluate.metrics import FloatArray

KEY = "Study"
MISSING = ("", "nan", "na", "n/a", "null", "none")


@dataclass(frozen=True)
class Table:
    """A CSV file as text, one row a study.

    Attributes
    ----------
    path : Path
    key : str
        Name of the column that names the studies.
    rows : dict of study to list of str
        Cells, in the order of `columns`, without the key.
    columns : tuple of str
    """

    path: Path
    key: str
    rows: dict[str, list[str]]
    columns: tuple[str, ...]

    def text(self, column: str) -> list[str]:
        """Return the cells of a column, in the order of the rows."""
        place = self.columns.index(column)
        return [cells[place] for cells in self.rows.values()]

    def values(
        self, columns: Sequence[str], studies: Sequence[str], *, allowed: Collection[float] | None, missing: bool
    ) -> FloatArray:
        """Return numbers [len(studies), len(columns)], joined by name.

        Parameters
        ----------
        columns, studies : sequence of str
        allowed : collection of float, or None
            The values that a cell may have; None for any finite number.
        missing : bool
            Whether a cell may be empty; it is NaN then.

        Raises
        ------
        DatasetError
            Naming file, study, column and value of the first cell that is wrong, or the column that is missing.
        """
        if absent := [column for column in columns if column not in self.columns]:
            has = ", ".join(self.columns) or "no other column"
            raise DatasetError(f"{self.path}: no column {absent[0]!r}; it has {has}; choose with --findings")
        places = [self.columns.index(column) for column in columns]
        result = np.empty((len(studies), len(columns)))
        for row, study in enumerate(studies):
            cells = self.rows[study]
            for column, place in enumerate(places):
                value = _number(cells[place])
                if value is None or not (math.isfinite(value) if allowed is None else value in allowed):
                    if missing and cells[place].lower() in MISSING:
                        value = math.nan
                    else:
                        wanted = "a finite number" if allowed is None else " or ".join(f"{v:g}" for v in allowed)
                        raise DatasetError(
                            f"{self.path}: {self.key} {study}: {columns[column]} is {cells[place]!r}; expected {wanted}"
                        )
                result[row, column] = value
        return result

    def same_studies(self, truth: Table) -> None:
        """Check that the studies are those of the truth, in any order.

        Raises
        ------
        DatasetError
            Naming the first study that is unknown, or missing.
        """
        if unknown := [study for study in self.rows if study not in truth.rows]:
            raise DatasetError(
                f"{self.path}: {self.key} {unknown[0]!r} is not in {truth.path}{_more(unknown)};"
                " remove what is not judged"
            )
        if missing := [study for study in truth.rows if study not in self.rows]:
            raise DatasetError(
                f"{self.path}: {self.key} {missing[0]!r} of {truth.path} is missing{_more(missing)};"
                " every study must be answered"
            )


def read(path: Path, key: str = KEY) -> Table:
    """Read a CSV file whose rows are named by the column `key`.

    Parameters
    ----------
    path : Path
        UTF-8, commas, names of columns in the first row; spaces around names and cells do not count.
    key : str

    Raises
    ------
    DatasetError
        Naming the file and what is wrong with it: not text, no such column, a name twice, a row too short ...
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text (byte {error.start}); save it as CSV in UTF-8") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}") from None
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [" ".join(name.split()) for name in next(lines, [])]
        if key not in header:
            has = f"its first row is {', '.join(map(repr, header[:4]))}" if header else "it is empty"
            raise DatasetError(f"{path}: no column {key!r}: {has}; name the column of the studies with --key")
        if twice := [name for name, count in Counter(header).items() if count > 1]:
            raise DatasetError(f"{path}: column {twice[0]!r} is there twice; keep one of them")
        place = header.index(key)
        rows: dict[str, list[str]] = {}
        for line in lines:
            if not any(cell.strip() for cell in line):
                continue
            if len(line) != len(header):
                raise DatasetError(
                    f"{path}: line {lines.line_num} has {len(line)} cells, the first line {len(header)}; mend the row"
                )
            cells = [cell.strip() for cell in line]
            study = " ".join(cells.pop(place).split())  # one line in messages
            if not study:
                raise DatasetError(f"{path}: line {lines.line_num} has no {key}; name it or remove the row")
            if study in rows:
                raise DatasetError(f"{path}: {key} {study!r} is there twice (again in line {lines.line_num}); keep one")
            rows[study] = cells
    except csv.Error as error:
        raise DatasetError(f"{path}: line {lines.line_num}: not CSV: {error}") from None
    if not rows:
        raise DatasetError(f"{path}: no row below the names of the columns")
    return Table(path, key, rows, tuple(name for name in header if name != key))


def files(paths: Sequence[Path]) -> dict[str, Path]:
    """Return the CSV files among paths and below folders, by name without ``.csv``, in order.

    Raises
    ------
    DatasetError
        For a folder without one, or two of the same name.
    """
    found: dict[str, Path] = {}
    for path in paths:
        inside = sorted(path.rglob("*.csv")) if path.is_dir() else [path]
        if not inside:
            raise DatasetError(f"{path}: no .csv file in this folder")
        for file in inside:
            if file.stem in found:
                raise DatasetError(f"{file}: {found[file.stem]} has the same name; rename one, or give it once")
            found[file.stem] = file
    return found


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)  # Python reads 1_5 as 15
    except ValueError:
        return None


def _more(names: list[str]) -> str:
    return f" (nor are {len(names) - 1} more)" if len(names) > 1 else ""
