"""What is stored, as DICOMweb sees it: which instances there are, and their headers as DICOM JSON (PS3.18 Annex F).

Bytes are served as they came; what the database knows better (identifiers that were derived, a patient who was
corrected) stands in the JSON. Quarantined, superseded and rejected instances do not exist here, and neither do pictures
that came as JPEG or PNG: they have no DICOM header, and one made up would claim what nobody said.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from pydicom import Dataset
from pydicom.dataelem import DataElement
from sqlalchemy.engine import Row

from wetread.clinic import content, identity, store
from wetread.clinic.archive import Archive
from wetread.clinic.store import Store
from wetread.errors import NotFoundError, ReadError
from wetread.radiograph import dicom
from wetread.radiograph.dicom import quiet
from wetread.radiograph.read import Limits

Json = dict[str, Any]  # one data set: tag in hexadecimal → {"vr": …, "Value": […]}

PIXELS = "7FE00010"
INLINE = 1024  # bytes of a binary value above which it is left out and fetched by its BulkDataURI
NOTHING = "no such study, series or instance at this site"
SERVED = ("stored", "document")  # states of instances that exist here
_BULKY = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN"})
_CACHED_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Held:
    """One instance, with what its study's row says of the patient."""

    id: str
    study: str
    study_uid: str
    series_uid: str
    sop_uid: str
    sha256: str
    bytes: int
    patient_id: str
    patient_name: str
    birth_date: str | None
    sex: str | None
    reason: str | None = None  # what it is, of a document

    @property
    def own(self) -> bool:
        """Whether we made it, and it came back."""
        return (self.reason or "").startswith(identity.OWN)

    @property
    def path(self) -> str:
        """Return its place below ``/dicomweb``."""
        return f"/studies/{self.study_uid}/series/{self.series_uid}/instances/{self.sop_uid}"


COLUMNS = (
    store.instance.c.id,
    store.instance.c.study,
    store.study.c.study_uid,
    store.series.c.series_uid,
    store.instance.c.sop_uid,
    store.instance.c.sha256,
    store.instance.c.bytes,
    store.study.c.patient_id,
    store.study.c.patient_name,
    store.study.c.birth_date,
    store.study.c.sex,
    store.instance.c.reason,
)


class Headers:
    """The headers of stored instances as DICOM JSON, the latest used kept: a file never changes under its name.

    Parameters
    ----------
    archive : Archive
    """

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self._kept: OrderedDict[str, tuple[Json, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, held: Held) -> Json:
        """Return the header of an instance, as the database corrects it: a new dict of shared values.

        Raises
        ------
        NotFoundError
            When its file is not in the archive.
        """
        with self._lock:
            if found := self._kept.get(held.sha256):
                self._kept.move_to_end(held.sha256)
        if not found:
            try:
                found = as_json(self.archive.path(held.sha256))
            except FileNotFoundError:
                raise NotFoundError(f"image {held.id}: its file is missing; restore it from a backup") from None
            with self._lock:
                if held.sha256 not in self._kept and found[1] <= _CACHED_BYTES // 16:
                    self._kept[held.sha256] = found
                    self._bytes += found[1]
                while self._bytes > _CACHED_BYTES:
                    self._bytes -= self._kept.popitem(last=False)[1][1]
        return correct(found[0], held)


def as_json(path: Path) -> tuple[Json, int]:
    """Read a file's header; elements that cannot be expressed are left out. Never raises for what the file contains.

    Returns
    -------
    header : dict
        Large binary values and pixel data as a `BulkDataURI` relative to the instance.
    size : int
        About how many bytes it takes.
    """
    try:
        with quiet():
            return _express(*content.header(path, ()))
    except FileNotFoundError:
        raise
    except Exception:  # hostile bytes can raise anything from a parser
        return {}, 2


def _express(dataset: Dataset, pixels: bool) -> tuple[Json, int]:
    found: Json = {}
    size = 2
    for tag in dataset.keys():  # noqa: SIM118  # iterating over a data set converts each element, and may raise
        try:
            element = dataset[tag]
            key = f"{element.tag:08X}"
            entry = _element(element, key)
            text = json.dumps(entry, ensure_ascii=False, allow_nan=False).encode()
        except Exception:  # noqa: S112  # NaN, a broken number, a character that cannot be sent: the rest still can
            continue
        found[key], size = entry, size + len(text) + 200
    found["00080005"] = {"vr": "CS", "Value": ["ISO_IR 192"]}  # the JSON's own, whatever the file's was
    syntax = getattr(dataset, "file_meta", Dataset()).get("TransferSyntaxUID")
    if syntax:
        found["00083002"] = {"vr": "UI", "Value": [str(syntax)]}
    if pixels:
        found[PIXELS] = {"vr": "OW", "BulkDataURI": f"/bulkdata/{PIXELS}"}
    return dict(sorted(found.items())), size


def _element(element: DataElement, key: str) -> Json:
    if element.VR in _BULKY and isinstance(element.value, bytes) and len(element.value) > INLINE:
        return {"vr": str(element.VR), "BulkDataURI": f"/bulkdata/{key}"}
    return dict(element.to_json_dict(bulk_data_element_handler=None, bulk_data_threshold=INLINE))


def correct(header: Json, held: Held) -> Json:
    """Return a copy of a header with the identifiers and the patient that the database has."""
    result = header | {
        "00080018": {"vr": "UI", "Value": [held.sop_uid]},
        "0020000D": {"vr": "UI", "Value": [held.study_uid]},
        "0020000E": {"vr": "UI", "Value": [held.series_uid]},
    }
    if held.patient_id and held.patient_id != first(header, "00100020"):
        result["00100020"] = {"vr": "LO", "Value": [held.patient_id]}
    if held.patient_name and held.patient_name != shown_name(first(header, "00100010")):
        result["00100010"] = {"vr": "PN", "Value": [{"Alphabetic": held.patient_name.replace(", ", "^")}]}
    if held.birth_date and (day := held.birth_date.replace("-", "")) != first(header, "00100030"):
        result["00100030"] = {"vr": "DA", "Value": [day]}
    if held.sex and held.sex != first(header, "00100040"):
        result["00100040"] = {"vr": "CS", "Value": [held.sex]}
    return result


def shown_name(name: str) -> str:
    """Return a DICOM name as the database has it: family and given name, parted by a comma."""
    return ", ".join(part for part in name.split("=")[0].split("^")[:2] if part)


def first(header: Json, tag: str) -> str:
    """Return the first value of an element as text; empty when it has none."""
    return next(iter(values(header, tag)), "")


def values(header: Json, tag: str) -> list[str]:
    """Return the values of an element as text; of names, the alphabetic form."""
    found = []
    for value in header.get(tag, {}).get("Value") or []:
        if isinstance(value, dict):
            value = value.get("Alphabetic")
        if value is not None and not isinstance(value, (dict, list)):
            found.append(str(value).strip())
    return found


def resolve(header: Json, address: str) -> Json:
    """Return a copy of a header whose bulk data can be fetched: `address` is that of the instance."""
    return {
        tag: entry | {"BulkDataURI": address + entry["BulkDataURI"]} if "BulkDataURI" in entry else entry
        for tag, entry in header.items()
    }


def find(
    database: Store, site: str, study_uid: str, series_uid: str | None = None, sop_uid: str | None = None
) -> Sequence[Held]:
    """Return the instances of a study, of one of its series, or one instance, in order of arrival.

    Raises
    ------
    NotFoundError
        When there is none at this site.
    """
    wanted = _joined().where(store.instance.c.site == site, existing(), store.study.c.study_uid == study_uid)
    if series_uid is not None:
        wanted = wanted.where(store.series.c.series_uid == series_uid)
    if sop_uid is not None:
        wanted = wanted.where(store.instance.c.sop_uid == sop_uid)
    with database.read() as connection:
        rows = connection.execute(wanted.order_by(store.instance.c.received_at, store.instance.c.id)).all()
    if not rows:
        raise NotFoundError(NOTHING)
    return held(rows)


def existing(covered: sa.Select[Any] | None = None, instance: Any = store.instance) -> sa.ColumnElement[bool]:
    """Return what an instance fulfils that exists here: in the studies `covered`, nothing that is our own."""
    there = sa.and_(instance.c.format == "dicom", instance.c.state.in_(SERVED))
    return sa.and_(there, ~sa.and_(_own(instance), instance.c.study.in_(covered))) if covered is not None else there


def _own(instance: Any) -> sa.ColumnElement[bool]:
    return sa.and_(instance.c.state == "document", instance.c.reason.startswith(identity.OWN))


def uid(database: Store, site: str, study: str) -> str | None:
    """Return the Study Instance UID by which a study can be had here; None when nothing of it is DICOM."""
    wanted = _joined().where(store.instance.c.site == site, existing(), store.instance.c.study == study)
    with database.read() as connection:
        row = connection.execute(wanted.limit(1)).first()
    return None if row is None else str(row.study_uid)


def held(rows: Iterable[Row[Any]]) -> list[Held]:
    """Return rows of `COLUMNS` as instances."""
    return [Held(*tuple(row)) for row in rows]


def _joined() -> sa.Select[Any]:
    instance, study, series = store.instance, store.study, store.series
    return sa.select(*COLUMNS).select_from(
        instance.join(study, study.c.id == instance.c.study).join(series, series.c.id == instance.c.series)
    )


def read(archive: Archive, one: Held, limits: Limits) -> Dataset:
    """Return the whole data set of an instance, pixels included.

    Raises
    ------
    ReadError
        When it cannot be parsed within the limits.
    NotFoundError
        When its file is not in the archive.
    """
    try:
        data = archive.path(one.sha256).read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"image {one.id}: its file is missing; restore it from a backup") from None
    with quiet():
        try:
            return dicom.parse(data, "image", limits)
        except ReadError:
            raise
        except Exception:
            raise ReadError("image: broken DICOM file; export it again") from None
