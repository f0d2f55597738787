"""`wetread score --claims`: claimed diagnoses beside a model's scores, for a clerk. It recommends nothing.

A claim is *supported* where the package calls the finding likely, *not supported* where it calls it unlikely, and
everything else is *cannot say*: between the two cut-offs, refused, not there, or not a finding of the model. A claim
that is not supported may be right: the model looks at one picture for a few findings and misses some.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
from rich.table import Table

from wetread.errors import ReadError
from wetread.infer import study_list
from wetread.model.package import Package

NOTE = (
    "A comparison of claims with one model's scores. It recommends nothing: whether a claim holds is for a physician."
)
_CLAIM = ("claim", "claims", "finding", "findings", "diagnosis", "diagnoses")
Verdict = Literal["supported", "not supported", "cannot say"]


@dataclass(frozen=True)
class Compared:
    """One claimed finding.

    Attributes
    ----------
    study, file : str
        As in the list of claims; one may be empty.
    claim : str
    verdict : {"supported", "not supported", "cannot say"}
    probability : float or None
        Of the finding in the study: of several images the highest, or their mean, as the package says; of a finding
        that means "normal" the lowest.
    why : str
        In words.
    """

    study: str
    file: str
    claim: str
    verdict: Verdict
    probability: float | None
    why: str


def compare(claims: Path, scores: Path, package: Package) -> list[Compared]:
    """Compare a list of claims with a table of scores.

    Parameters
    ----------
    claims : Path
        CSV with a column `study` or `file`, and `claim` (or `finding`, `diagnosis`): findings, separated by ``;``.
    scores : Path
        What `scoring.score` wrote.
    package : Package
        The model that scored.

    Raises
    ------
    ReadError
        When the list is none, or a column is missing.
    """
    rows = study_list.table(claims)
    file, study = study_list.column(rows, study_list.FILE), study_list.column(rows, study_list.STUDY)
    said = study_list.column(rows, _CLAIM)
    if said is None or (file is None and study is None):
        raise ReadError(f"{claims}: needs a column `claim`, and `study` or `file`; it has {', '.join(rows[0])}")
    scored = pq.read_table(scores).to_pylist()
    by_name = {_plain(finding): finding for finding in package.task.findings}
    found = []
    for row in rows:
        names = row[study].strip() if study else "", row[file].strip() if file else ""
        theirs, missing = _find(scored, *names, claims.parent)
        for claim in filter(None, (part.strip() for part in re.split("[;|]", row[said]))):
            verdict, value, why = _judge(theirs, missing, by_name.get(_plain(claim)), claim, package)
            found.append(Compared(*names, claim, verdict, value, why))
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _find(scored: Sequence[dict[str, Any]], study: str, file: str, folder: Path) -> tuple[list[dict[str, Any]], str]:
    """Return the scores of a study or file, and why there are none."""
    if not file:
        rows = [row for row in scored if study and row["study"] == study]
        return rows, "" if rows else "no image of this study was scored"
    whole = str((folder / file).resolve())
    for names, by_path in (({file, whole}, True), ({Path(file).name}, False)):
        rows = [row for row in scored if names & {path if by_path else Path(path).name for path in _files(row)}]
        if len(rows) == 1:
            return rows, ""
        if rows:
            return [], f"{len(rows)} scored images have this name; give the whole path"
    return [], "no image of this name was scored"


def _files(row: dict[str, Any]) -> list[str]:
    return [row[key] for key in ("image", "lateral") if row.get(key)]


def _judge(
    rows: Sequence[dict[str, Any]], missing: str, finding: str | None, claim: str, package: Package
) -> tuple[Verdict, float | None, str]:
    if finding is None:
        return "cannot say", None, f"{claim} is not a finding of {package.name}"
    if missing:
        return "cannot say", None, missing
    values = [row[finding] for row in rows if row["code"] is None and row[finding] is not None]
    if not values:
        codes = ", ".join(sorted({row["code"] for row in rows if row["code"]}))
        return "cannot say", None, f"refused: {codes}"
    mean = package.meta.aggregate == "mean"
    lowest = finding == package.task.normal
    value = sum(values) / len(values) if mean else min(values) if lowest else max(values)
    low, high = package.meta.cutoffs[finding]
    if value >= high:
        return "supported", value, f"likely: at least {high:.3f}"
    if value < low:
        return "not supported", value, f"unlikely: below {low:.3f}"
    return "cannot say", value, f"unsure: between {low:.3f} and {high:.3f}"


def write(found: Iterable[Compared], out: Path, package: Package) -> tuple[Path, Path]:
    """Write the comparison beside a table of scores, as ``.claims.csv`` and ``.claims.json``; returns both paths."""
    rows = [asdict(one) for one in found]
    as_csv, as_json = out.with_suffix(".claims.csv"), out.with_suffix(".claims.json")
    with as_csv.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(Compared.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _harmless(value) for key, value in row.items()} for row in rows)
    about = {"note": NOTE, "model": package.name, "model_id": package.id, "claims": rows}
    as_json.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return as_csv, as_json


def _harmless(value: Any) -> Any:
    """Keep a spreadsheet from taking a name in the list for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t")) else value


def render(found: Sequence[Compared]) -> Table:
    """Return the comparison as a table for a person, with the note under it."""
    table = Table(caption=NOTE, caption_justify="left")
    for name in ("study or file", "claim", "verdict", "probability", "why"):
        table.add_column(name, overflow="fold")
    for one in found:
        figure = "" if one.probability is None else f"{one.probability:.3f}"
        table.add_row(one.file or one.study, one.claim, one.verdict, figure, one.why)
    return table
