"""Archives from which studies are fetched: by C-FIND with C-GET or C-MOVE, or by QIDO-RS and WADO-RS."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import quote

import httpx
from pydicom import Dataset
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)
from pynetdicom import build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from wetread.clinic import identity, peers
from wetread.clinic.intake import Intake
from wetread.clinic.peers import Caller, Peer, PeerError
from wetread.clinic.receive import Receiver
from wetread.errors import ClinicError, ConfigError, hide

_SYNTAXES = (
    (ExplicitVRLittleEndian, ImplicitVRLittleEndian), (DeflatedExplicitVRLittleEndian,), (JPEGBaseline8Bit,),
    (JPEGExtended12Bit,), (JPEGLossless,), (JPEGLosslessSV1,), (JPEGLSLossless,), (JPEGLSNearLossless,),
    (JPEG2000Lossless,), (JPEG2000,), (RLELossless,), (HTJ2KLossless,),
)  # fmt: skip
_CLASSES = (ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation, SecondaryCaptureImageStorage)

STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
MAX_MATCHES = 100_000  # of one search; an archive that goes on for ever is left

Series = dict[str, dict[str, str]]  # Series Instance UID → SOP Instance UID → SOP Class UID


@dataclass(frozen=True)
class Wanted:
    """One line of the list: at least one of the three identifies a study."""

    line: int
    study_uid: str = ""
    accession: str = ""
    patient_id: str = ""


class Source(Protocol):
    """An archive from which studies are fetched."""

    def find(self, wanted: Wanted) -> list[str]:
        """Return the Study Instance UIDs of a line."""

    def instances(self, study_uid: str) -> Series:
        """Return what a study holds."""

    def fetch(self, study_uid: str, missing: Series) -> str:
        """Bring instances; return why not all came, or nothing."""


class DimseSource:
    """An archive that is asked by DICOM.

    Parameters
    ----------
    peer : Peer
    caller : Caller
        With our AE title; by C-MOVE the archive must know under which address it listens.
    receiver : Receiver, optional
        Takes what comes by C-GET; without one, C-MOVE is used.
    site : str
        To which what comes by C-GET belongs.
    """

    def __init__(self, peer: Peer, caller: Caller, receiver: Receiver | None = None, site: str = "") -> None:
        self.peer, self.caller, self.receiver, self.site = peer, caller, receiver, site

    def find(self, wanted: Wanted) -> list[str]:
        """Return the Study Instance UIDs of a line, by C-FIND."""
        query = Dataset()
        query.QueryRetrieveLevel = "STUDY"
        query.StudyInstanceUID = wanted.study_uid
        if wanted.accession:
            query.AccessionNumber = wanted.accession
        if wanted.patient_id:
            query.PatientID = wanted.patient_id
        keys = {k: str(query[k].value) for k in ("StudyInstanceUID", "AccessionNumber", "PatientID") if k in query}
        with self._finding() as link:
            found = _find(link, query)
        uids = {
            str(match.get("StudyInstanceUID") or "")
            for match in found
            if all(_agrees(str(match.get(key) or "").strip(), value) for key, value in keys.items())
        }
        return sorted(uids - {""})

    def instances(self, study_uid: str) -> Series:
        """Return what a study holds, by C-FIND down the levels, as archives without relational queries need it."""
        held: Series = {}
        with self._finding() as link:
            query = Dataset()
            query.QueryRetrieveLevel, query.StudyInstanceUID, query.SeriesInstanceUID = "SERIES", study_uid, ""
            for series in sorted({str(answer.get("SeriesInstanceUID") or "") for answer in _find(link, query)} - {""}):
                query = Dataset()
                query.QueryRetrieveLevel, query.StudyInstanceUID, query.SeriesInstanceUID = "IMAGE", study_uid, series
                query.SOPInstanceUID = query.SOPClassUID = ""
                held[series] = {
                    str(answer.SOPInstanceUID): str(answer.get("SOPClassUID") or "")
                    for answer in _find(link, query)
                    if answer.get("SOPInstanceUID")
                }
        return held

    def fetch(self, study_uid: str, missing: Series) -> str:
        """Bring instances by C-GET or C-MOVE, series by series; return why not all came."""
        model = (
            StudyRootQueryRetrieveInformationModelGet if self.receiver else StudyRootQueryRetrieveInformationModelMove
        )
        more: dict[str, Any] = {}
        contexts = [build_context(model)]
        if self.receiver:
            classes = sorted({c for kept in missing.values() for c in kept.values() if c}) or [str(c) for c in _CLASSES]
            few = len(classes) * len(_SYNTAXES) < 128
            groups = _SYNTAXES if few else (tuple(s for group in _SYNTAXES for s in group),)
            contexts += [build_context(c, list(group)) for c in classes[:127] for group in groups]
            more = {
                "ext_neg": [build_role(c, scp_role=True) for c in classes[:127]],
                "evt_handlers": [(evt.EVT_C_STORE, self._take)],
            }
        with peers.association(self.peer, contexts, self.caller, **more) as link:
            reasons = [self._bring(link, model, study_uid, series, kept) for series, kept in missing.items()]
        return "; ".join(dict.fromkeys(reason for reason in reasons if reason))

    def _take(self, event: evt.Event) -> Dataset:
        return cast(Receiver, self.receiver).store(event, self.peer.ae, self.site, corrects=True)

    def _bring(self, link: Association, model: Any, study_uid: str, series: str, kept: Mapping[str, str]) -> str:
        query = Dataset()
        query.QueryRetrieveLevel, query.StudyInstanceUID, query.SeriesInstanceUID = "IMAGE", study_uid, series
        query.SOPInstanceUID = sorted(kept)
        try:
            answers = link.send_c_get(query, model) if self.receiver else link.send_c_move(query, self.caller.ae, model)
            status: int | None = None
            for answer, _ in answers:
                status = answer.get("Status")
        except (RuntimeError, ValueError) as error:
            return identity.clean(f"the archive does not do it ({error})")
        return "" if status == 0 else "no answer" if status is None else f"the archive answered 0x{status:04X}"

    def _finding(self) -> Any:
        return peers.association(self.peer, [build_context(StudyRootQueryRetrieveInformationModelFind)], self.caller)


def _find(link: Association, query: Dataset) -> list[Dataset]:
    """Return the matches of a C-FIND; raises PeerError when it fails."""
    found = []
    status: int | None = None
    try:
        for answer, match in link.send_c_find(query, StudyRootQueryRetrieveInformationModelFind):
            status = answer.get("Status")
            if status in (0xFF00, 0xFF01) and match is not None:
                found.append(match)
    except (RuntimeError, ValueError) as error:
        raise PeerError(identity.clean(f"{link.acceptor.ae_title}: does not answer C-FIND ({error})")) from None
    if status != 0:
        raise PeerError(
            f"{link.acceptor.ae_title}: C-FIND answered {'nothing' if status is None else f'0x{status:04X}'}"
        )
    return found


class WebSource:
    """An archive that is asked by DICOMweb.

    Parameters
    ----------
    url : str
        Root of its DICOMweb services.
    intake : Intake
    site : str
        To which what comes belongs.
    token : str
        Bearer token; empty for none.
    ca : Path, optional
        Authority of its certificate, PEM.
    timeout_s : float
        Longest wait for an answer, in s.
    """

    def __init__(
        self, url: str, intake: Intake, site: str, *, token: str = "", ca: Path | None = None, timeout_s: float = 30.0
    ) -> None:
        self.url, self.intake, self.site = url.rstrip("/"), intake, site
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            trust = ssl.create_default_context(cafile=ca) if url.startswith("https:") else False
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"--ca {ca}: cannot be used ({error}); name a PEM file") from None
        self._http = httpx.Client(headers=headers, timeout=timeout_s, verify=trust, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def find(self, wanted: Wanted) -> list[str]:
        """Return the Study Instance UIDs of a line, by QIDO-RS."""
        asked = {
            "StudyInstanceUID": wanted.study_uid,
            "AccessionNumber": wanted.accession,
            "PatientID": wanted.patient_id,
        }
        found = self._search("/studies", {name: value for name, value in asked.items() if value}, STUDY)
        tags = {STUDY: wanted.study_uid, "00080050": wanted.accession, "00100020": wanted.patient_id}
        return sorted(uid for uid, item in found.items() if all(_agrees(_value(item, t), v) for t, v in tags.items()))

    def instances(self, study_uid: str) -> Series:
        """Return what a study holds, by QIDO-RS."""
        held: Series = {}
        for series in sorted(self._search(f"{_path(studies=study_uid)}/series", {}, SERIES)):
            kept = self._search(f"{_path(studies=study_uid, series=series)}/instances", {}, INSTANCE)
            held[series] = {uid: _value(item, "00080016") for uid, item in kept.items()}
        return held

    def fetch(self, study_uid: str, missing: Series) -> str:
        """Bring instances by WADO-RS, one by one, in the transfer syntax in which they are stored."""
        reasons = []
        for series, kept in missing.items():
            for uid in sorted(kept):
                path = _path(studies=study_uid, series=series, instances=uid)
                try:
                    with self._instance(path) as file:
                        self.intake.take(file, f"{uid}.dcm", self.site, actor="pull", corrects=True)
                except ClinicError as error:
                    reasons.append(str(error))
        return "; ".join(dict.fromkeys(reasons))

    def _search(self, path: str, asked: Mapping[str, str], tag: str) -> dict[str, dict[str, Any]]:
        """Return all matches by the UID that `tag` holds, page by page, until a page brings nothing new.

        Archives give fewer a page than they are asked for, or heed neither `limit` nor `offset` and give the same page
        for ever: how many came says nothing, only whether there was one among them that had not come before.
        """
        found: dict[str, dict[str, Any]] = {}
        came = 0
        try:
            while True:
                page = {**asked, "limit": "1000", "offset": str(came)}
                answer = self._http.get(self.url + path, params=page, headers={"Accept": "application/dicom+json"})
                if answer.status_code == 204 or (came and answer.status_code in (404, 416)):
                    return found
                answer.raise_for_status()
                more = answer.json()
                if not isinstance(more, list) or not all(isinstance(item, dict) for item in more):
                    raise ValueError("no list of matches")
                known, came = len(found), came + len(more)
                for item in more:
                    if uid := _value(item, tag):
                        found.setdefault(uid, item)
                if len(found) == known:
                    return found
                if len(found) > MAX_MATCHES:
                    raise PeerError(f"{self.url}: more than {MAX_MATCHES} matches of {path}; ask for less")
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise PeerError(f"{hide(self.url)}: {_reason(error)}") from None

    @contextmanager
    def _instance(self, path: str) -> Iterator[BinaryIO]:
        """Fetch one file: the only part of a multipart answer, or the answer itself."""
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        limit = self.intake.max_bytes + 4096
        try:
            with (
                tempfile.SpooledTemporaryFile(16 * 2**20) as file,
                self._http.stream("GET", self.url + path, headers={"Accept": accept}) as answer,
            ):
                answer.raise_for_status()
                for piece in answer.iter_bytes():
                    file.write(piece)
                    if file.tell() > limit:
                        raise ClinicError(f"{hide(self.url)}: an instance of more than {limit} bytes; raise max_bytes")
                file.seek(0)
                yield _part(cast(BinaryIO, file), answer.headers.get("Content-Type", ""))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise PeerError(f"{hide(self.url)}: {_reason(error)}") from None


def _path(**parts: str) -> str:
    """Return a path of DICOMweb; what an archive calls a UID may be anything."""
    return "".join(f"/{name}/{quote(uid, safe='')}" for name, uid in parts.items())


def _part(file: BinaryIO, content_type: str) -> BinaryIO:
    """Return the first part of a multipart body (RFC 2046), or the body when it is not multipart."""
    head = file.read(4)
    file.seek(0)
    if not content_type.lower().startswith("multipart/") or not head.lstrip(b"\r\n").startswith(b"--"):
        return file
    body = file.read()
    boundary, _, rest = body.lstrip(b"\r\n").partition(b"\r\n")
    _, _, content = rest.partition(b"\r\n\r\n") if not rest.startswith(b"\r\n") else (b"", b"", rest[2:])
    return BytesIO(content[: content.rfind(b"\r\n" + boundary)])


def _value(item: Mapping[str, Any], tag: str) -> str:
    values = (item.get(tag) or {}).get("Value") or [""]
    return str(values[0] or "").strip()


def _agrees(said: str, asked: str) -> bool:
    """Tell whether a match is one: an archive that does not know a key gives everything it has."""
    return not asked or not said or said.casefold() == asked.strip().casefold()


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"answered {error.response.status_code}"
    return f"cannot be reached or makes no sense ({identity.clean(hide(str(error)))[:160] or type(error).__name__})"
