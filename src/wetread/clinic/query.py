"""QIDO-RS: questions about studies, series and instances (PS3.18 10.6), answered from the database.

Keys that the database has are matched there, so that limit and offset cost nothing. Any other key that is not in a
sequence is matched against the headers of what is left, of at most `SCANNED` entries.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from sqlalchemy.engine import Connection, Row

from wetread.clinic import dicomweb, store
from wetread.clinic.dicomweb import Headers, Json
from wetread.clinic.store import Store
from wetread.errors import ClinicError, NotFoundError

MAX_RESULTS = 500
SCANNED = 5000
_AT_ONCE = 250
LEVELS = ("studies", "series", "instances")
_STUDY = [
    "00080005",
    "00080020",
    "00080030",
    "00080050",
    "00080056",
    "00080061",
    "00080090",
    "00080201",
    "00081030",
    "00081190",
    "00100010",
    "00100020",
    "00100030",
    "00100040",
    "0020000D",
    "00200010",
    "00201206",
    "00201208",
]
_SERIES = ["00080060", "0008103E", "00180015", "0020000E", "00200011", "00201209", "00400244", "00400245", "00400275"]
_INSTANCE = ["00080016", "00080018", "00083002", "00200013", "00280008", "00280010", "00280011", "00280100"]
RETURNED = {"studies": _STUDY, "series": _STUDY + _SERIES, "instances": _STUDY + _SERIES + _INSTANCE}
_OPTIONS = frozenset(
    {"limit", "offset", "includefield", "fuzzymatching", "emptyvaluematching", "multiplevaluematching"}
)
_RANGES = {"DA": r"\d{8}", "TM": r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?", "DT": r"\d{4,14}(\.\d{1,6})?([+-]\d{4})?"}
_COLUMNS: dict[str, sa.ColumnElement[Any]] = {
    "00080020": store.study.c.study_date,
    "00080050": store.study.c.accession,
    "00080060": store.series.c.modality,
    "00080061": store.series.c.modality,
    "00081030": store.study.c.description,
    "0008103E": store.series.c.description,
    "00100010": store.study.c.patient_name,
    "00100020": store.study.c.patient_id,
    "0020000D": store.study.c.study_uid,
    "0020000E": store.series.c.series_uid,
    "00080018": store.instance.c.sop_uid,
}


@dataclass(frozen=True)
class Query:
    """What is asked: `keys` maps tags to values, `include` names further tags (or ``all``)."""

    level: str
    keys: dict[str, str] = field(default_factory=dict)
    include: frozenset[str] = frozenset()
    limit: int = MAX_RESULTS
    offset: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """Data sets in order, the newest study first; `more` when there are further ones."""

    found: list[Json]
    more: bool
    warnings: tuple[str, ...]


def parse(level: str, parameters: Iterable[tuple[str, str]]) -> Query:
    """Read the parameters of a query.

    Parameters
    ----------
    level : str
        One of `LEVELS`.
    parameters : iterable of (str, str)
        Attributes by keyword or tag, and the options of PS3.18 8.3.4. What is not known is left out, with a warning.

    Raises
    ------
    ClinicError
        For a value that cannot be.
    """
    keys: dict[str, str] = {}
    include: set[str] = set()
    numbers = {"limit": MAX_RESULTS, "offset": 0}
    warnings = []
    for name, value in parameters:
        if name in numbers:
            if not re.fullmatch(r"[0-9]{1,9}", value):
                raise ClinicError(f"{name}={value[:20]!r}: must be a number from 0 to 999999999")
            numbers[name] = int(value)
        elif name == "fuzzymatching":
            if value.lower() == "true":
                warnings.append(
                    "The fuzzymatching parameter is not supported. Only literal matching has been performed."
                )
        elif name == "includefield":
            for part in value.split(","):
                tag = "all" if part.lower() == "all" else tag_of(part)
                if tag is not None:
                    include.add(tag)
                elif part:
                    warnings.append("An includefield is not known and was ignored.")
        elif name in _OPTIONS:
            warnings.append(f"The parameter {name} is not supported and was ignored.")
        elif (tag := tag_of(name)) is None:
            warnings.append("A parameter is not known and was ignored.")
        elif value not in ("", '""'):
            _check(name, tag, value)
            keys[tag] = value
    limit = min(numbers["limit"], MAX_RESULTS)
    return Query(level, keys, frozenset(include), limit, numbers["offset"], tuple(dict.fromkeys(warnings)))


def tag_of(name: str) -> str | None:
    """Return the tag of an attribute named by keyword or tag; None when it is in a sequence, or not known."""
    if re.fullmatch(r"[0-9a-fA-F]{8}", name):
        return name.upper() if keyword_for_tag(int(name, 16)) or int(name[:4], 16) % 2 else None
    tag = tag_for_keyword(name)
    return None if tag is None else f"{tag:08X}"


def _vr(tag: str) -> str:
    try:
        return dictionary_VR(int(tag, 16))
    except KeyError:
        return "LO"


def _check(name: str, tag: str, value: str) -> None:
    shape = _RANGES.get(_vr(tag))
    if "\0" in value or len(value) > 4096:
        raise ClinicError(f"{name}: a value that no attribute can have")
    if shape and not re.fullmatch(f"({shape})?-?({shape})?", value):
        raise ClinicError(f"{name}={value[:40]!r}: not a date, time or range of them")


def search(database: Store, headers: Headers, site: str, query: Query, covered: sa.Select[Any] | None = None) -> Answer:
    """Answer a query with what a site has.

    Parameters
    ----------
    database, headers
    site : str
    query : Query
    covered : select of studies, optional
        Those of which our own results are left out.
    """
    exact, rest = _conditions(query.keys)
    if not query.limit:
        return Answer([], False, query.warnings)
    enough = query.offset + query.limit + 1  # the last one only tells that there are more
    with database.read() as connection:
        if not rest:
            rows = connection.execute(_page(site, query.level, covered, exact, query.limit + 1, query.offset)).all()
            return Answer(
                _express(connection, headers, query, covered, rows[: query.limit]),
                len(rows) > query.limit,
                query.warnings,
            )
        matches = [(tag, _matcher(_vr(tag), value)) for tag, value in rest.items()]
        passed: list[Row[Any]] = []
        for start in range(0, SCANNED, _AT_ONCE):
            rows = connection.execute(
                _page(site, query.level, covered, exact, min(_AT_ONCE, SCANNED - start), start)
            ).all()
            for row in rows:
                header = _header(headers, row)
                if all(any(match(v) for v in dicomweb.values(header, tag)) for tag, match in matches):
                    passed.append(row)
            if len(rows) < _AT_ONCE or len(passed) >= enough:
                break
        warnings = query.warnings
        if len(passed) < enough and connection.execute(_page(site, query.level, covered, exact, 1, SCANNED)).first():
            warnings = (*warnings, f"Only the newest {SCANNED} entries have been searched.")
        asked = passed[query.offset : query.offset + query.limit]
        return Answer(_express(connection, headers, query, covered, asked), len(passed) >= enough, warnings)


def _page(
    site: str,
    level: str,
    covered: sa.Select[Any] | None,
    conditions: Sequence[sa.ColumnElement[bool]],
    limit: int,
    offset: int,
) -> sa.Select[Any]:
    """Select studies, series or instances that match, each study and series by its first instance, in order."""
    there = dicomweb.existing(covered)
    instance, study, series = store.instance, store.study, store.series
    newest = (
        study.c.study_date.desc().nulls_last(),
        study.c.study_time.desc().nulls_last(),
        study.c.received_at.desc(),
        study.c.id,
    )
    columns = [*dicomweb.COLUMNS, instance.c.series.label("series_id"), study.c.study_date, study.c.study_time,
               study.c.accession, study.c.description]  # fmt: skip
    joined = instance.join(study, study.c.id == instance.c.study).join(series, series.c.id == instance.c.series)
    rows = sa.select(*columns).select_from(joined)
    if level == "instances":
        chosen = rows.where(study.c.site == site, there, *conditions)
        return chosen.order_by(*newest, instance.c.received_at, instance.c.id).limit(limit).offset(offset)
    # The page is chosen before the first instance of each of its entries is looked for.
    tables = {"studies": (study,), "series": (study, series)}[level]
    own = [condition for condition in conditions if _tables(condition) <= set(tables)]
    deep = [condition for condition in conditions if not _tables(condition) <= set(tables)]
    inside = instance.c.study == study.c.id
    if level == "studies":
        within = sa.select(instance.c.id).select_from(instance.join(series, series.c.id == instance.c.series))
        page = sa.select(study.c.id).where(study.c.site == site)
        order: tuple[Any, ...] = newest
    else:
        inside = sa.and_(inside, instance.c.series == series.c.id)
        within = sa.select(instance.c.id)
        page = sa.select(series.c.id).join(study, study.c.id == series.c.study).where(study.c.site == site)
        arrival = sa.select(sa.func.min(instance.c.received_at)).where(inside, there)
        order = (*newest, arrival.correlate(*tables).scalar_subquery(), series.c.id)
    exists = within.where(inside, there, *deep).correlate(*tables).exists()
    page = page.where(exists, *own).order_by(*order).limit(limit).offset(offset)
    other = sa.alias(instance)
    same = other.c.study == study.c.id
    if level == "series":
        same = sa.and_(same, other.c.series == series.c.id)
    earliest = (
        sa.select(other.c.id)
        .where(same, dicomweb.existing(covered, other))
        .order_by(other.c.received_at, other.c.id)
        .limit(1)
        .correlate(study, series)
        .scalar_subquery()
    )
    return rows.where(tables[-1].c.id.in_(page), instance.c.id == earliest).order_by(
        *newest, instance.c.received_at, series.c.id
    )


def _tables(condition: sa.ColumnElement[bool]) -> set[Any]:
    """Return the tables whose columns a condition names."""
    return {column.table for column in sa.sql.visitors.iterate(condition) if isinstance(column, sa.Column)}


def _conditions(keys: dict[str, str]) -> tuple[list[sa.ColumnElement[bool]], dict[str, str]]:
    """Split the keys into conditions on columns and those that only the headers can answer."""
    found: list[sa.ColumnElement[bool]] = []
    rest: dict[str, str] = {}
    for tag, value in keys.items():
        column = _COLUMNS.get(tag)
        if column is None:
            rest[tag] = value
        elif tag == "00080020":
            low, high = _range(value)
            found += [column >= low] if low else []
            found += [column <= high] if high else []
        elif tag in ("0020000D", "0020000E", "00080018", "00080061", "00080060"):
            found.append(sa.or_(*(_like(column, part) for part in re.split(r"[,\\]", value) if part)))
        else:
            text = value.split("=")[0].replace("^", ", ").rstrip(", ") if tag == "00100010" else value
            found.append(_like(column, text, exact=tag != "00100010"))
    return found, rest


def _like(column: sa.ColumnElement[Any], value: str, exact: bool = True) -> sa.ColumnElement[bool]:
    """Match ``*`` and ``?`` in whatever case, and what has neither as it is if `exact`."""
    if exact and not re.search(r"[*?]", value):
        return column == value
    pattern = re.sub(r"([%_!])", r"!\1", value).replace("*", "%").replace("?", "_")
    return sa.func.lower(column).like(sa.func.lower(sa.literal(pattern)), escape="!")


def _range(value: str) -> tuple[str, str]:
    low, dash, high = value.partition("-")
    return low, high if dash else low


def _matcher(vr: str, value: str) -> Callable[[str], bool]:
    """Return what tells whether one value of a header matches a key."""
    if vr in _RANGES:
        low, high = _range(value)
        return lambda text: low <= text and (not high or text[: len(high)] <= high)
    parts = re.split(r"[,\\]", value) if vr in ("UI", "CS") else [value]
    patterns = [part.lower() for part in parts]
    return lambda text: any(_fits(pattern, text.lower()) for pattern in patterns)


def _fits(pattern: str, text: str) -> bool:
    """Match ``*`` and ``?`` in no more steps than the product of the lengths; a regular expression may take days."""
    at = place = begun = 0
    star: int | None = None  # the last one passed; what follows it was tried from `begun`
    while place < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, begun, at = at, place, at + 1
        elif at < len(pattern) and pattern[at] in ("?", text[place]):
            at, place = at + 1, place + 1
        elif star is not None:
            begun += 1
            at, place = star + 1, begun
        else:
            return False
    return not pattern[at:].strip("*")


def _express(
    connection: Connection, headers: Headers, query: Query, covered: sa.Select[Any] | None, rows: Sequence[Row[Any]]
) -> list[Json]:
    """Return rows of `_page` as data sets of what was asked for."""
    counts = _counts(connection, covered, rows)
    results = []
    for row in rows:
        one = dicomweb.Held(*row[: len(dicomweb.COLUMNS)])
        header = _header(headers, row) | _of_study(row)
        header["00080056"] = {"vr": "CS", "Value": ["ONLINE"]}
        modalities, series, instances, own = counts[one.study, row.series_id]
        header["00080061"] = {"vr": "CS", "Value": modalities}
        header["00201206"] = {"vr": "IS", "Value": [series]}
        header["00201208"] = {"vr": "IS", "Value": [instances]}
        header["00201209"] = {"vr": "IS", "Value": [own]}
        parts = one.path.split("/")
        place = "/".join(parts[: {"studies": 3, "series": 5, "instances": 7}[query.level]])
        header["00081190"] = {"vr": "UR", "Value": [place]}
        if "all" in query.include and query.level == "instances":
            results.append(header)
            continue
        wanted = {*RETURNED[query.level], *query.include, *query.keys}
        results.append({tag: header[tag] for tag in sorted(wanted) if tag in header})
    return results


def _header(headers: Headers, row: Row[Any]) -> Json:
    """Return the header of a row of `_page`; when its file is lost, what the database knows still stands."""
    one = dicomweb.Held(*row[: len(dicomweb.COLUMNS)])
    try:
        return headers.get(one)
    except NotFoundError:
        return dicomweb.correct({}, one)


def _of_study(row: Row[Any]) -> Json:
    """Return what the database knows of a study and its file may not say, or say otherwise."""
    entries = (
        ("00080020", "DA", row.study_date),
        ("00080030", "TM", row.study_time),
        ("00080050", "SH", row.accession),
        ("00081030", "LO", row.description),
    )
    return {tag: {"vr": vr, "Value": [value]} for tag, vr, value in entries if value}


def _counts(
    connection: Connection, covered: sa.Select[Any] | None, rows: Sequence[Row[Any]]
) -> dict[tuple[str, str], tuple[list[str], int, int, int]]:
    """Return for each (study, series) modalities, series and instances of the study, and instances of the series."""
    instance, series = store.instance.c, store.series.c
    grouped = (
        sa.select(instance.study, instance.series, series.modality, sa.func.count().label("images"))
        .join(store.series, series.id == instance.series)
        .where(instance.study.in_({row.study for row in rows}), dicomweb.existing(covered))
        .group_by(instance.study, instance.series, series.modality)
    )
    of_study = defaultdict(list)
    for row in connection.execute(grouped):
        of_study[row.study].append(row)
    found = {}
    for study, members in of_study.items():
        modalities = sorted({row.modality for row in members if row.modality})
        total = sum(row.images for row in members)
        for row in members:
            found[study, row.series] = (modalities, len(members), total, row.images)
    return found
