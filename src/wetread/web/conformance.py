"""The DICOM conformance statement (PS3.2), written from the tables by which the program works.

``python -m wetread.web.conformance docs/conformance.md`` writes the page; a test compares it with the code.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fastapi.routing import APIRoute
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, ComprehensiveSRStorage, SecondaryCaptureImageStorage
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from wetread.clinic import commitment, stow
from wetread.clinic.dimse import REJECTIONS, STORAGE_CLASSES, TRANSFER_SYNTAXES
from wetread.clinic.peers import IMPLEMENTATION_UID
from wetread.clinic.receive import STATUS_MEANS
from wetread.config import Settings
from wetread.web import dicomweb

_SERVICES = (
    (Verification, "SCP, SCU", "C-ECHO"),
    (None, "SCP", "C-STORE of the storage classes below"),
    (StorageCommitmentPushModel, "SCP", "N-ACTION, N-EVENT-REPORT"),
    (ComprehensiveSRStorage, "SCU", "C-STORE of results, setting `outputs_sr`"),
    (SecondaryCaptureImageStorage, "SCU", "C-STORE of pictures of results, setting `outputs_sc`"),
    (StudyRootQueryRetrieveInformationModelFind, "SCU", "`wetread pull`"),
    (StudyRootQueryRetrieveInformationModelGet, "SCU", "`wetread pull --by get`; then SCP of the storage classes"),
    (StudyRootQueryRetrieveInformationModelMove, "SCU", "`wetread pull --by move`"),
)
# Classes that are newer than pydicom's dictionary.
_NAMES = {
    "1.2.840.10008.5.1.4.1.1.66.7": "Label Map Segmentation Storage",
    "1.2.840.10008.5.1.4.1.1.66.8": "Height Map Segmentation Storage",
    "1.2.840.10008.5.1.4.1.1.9.100.1": "Waveform Presentation State Storage",
    "1.2.840.10008.5.1.4.1.1.9.100.2": "Waveform Acquisition Presentation State Storage",
}
_STOW = {
    stow.NO_ROOM: "no room on disk; nothing was kept, send again later",
    stow.TOO_LARGE: "larger than the setting `max_bytes`; nothing was kept",
    stow.MISMATCH: "of another study than the address names",
    stow.CANNOT_UNDERSTAND: "no DICOM instance",
    stow.PROCESSING: "an unforeseen fault",
    stow.COERCED: "warning: kept; an identifier was missing or invalid and one was derived, or other bytes have the "
    "SOP Instance UID already and these are kept apart",
}

_TEMPLATE = """# DICOM conformance

This page follows DICOM PS3.2 in short. It is written from the program's own tables by
`python -m wetread.web.conformance docs/conformance.md`, and a test keeps it so. How to set things up is in
[The wire](wire.md).

Wetread takes in studies by DIMSE and DICOMweb, orders a worklist by a first look at chest radiographs, and sends
results as Structured Report and Secondary Capture. It is for research use and no medical device.

## Implementation

| | |
|---|---|
| Implementation Class UID | `{implementation}` |
| Implementation Version Name | `WETREAD_` and the version |
| Our AE title | setting `dicom_ae_title`, by default `{title}` |
| Port | setting `dicom_port`; off unless set |
| Application context | 1.2.840.10008.3.1.1.1 |
| Asynchronous operations | no |
| Associations at a time | setting `dicom_associations`, by default {associations} |
| Largest PDU received | setting `dicom_pdu_bytes`, by default {pdu} bytes |
| Security | TLS 1.2 or later (`dicom_tls`), certificates of both sides (`dicom_tls_ca`), allow-list (`dicom_peers`) |
| Character sets | all of PS3.3 C.12.1.1.2 in what is received; ISO_IR 192 in what is made |

## Services

| SOP class | UID | role | used for |
|---|---|---|---|
{services}

C-STORE conforms to level 2 (full): every element is kept, private ones included, byte for byte. The data set is not
changed; the file meta information is made anew from SOP class, SOP instance and transfer syntax.

## Associations that are refused

| result, source, reason | when |
|---|---|
{rejections}

A presentation context is accepted when its SOP class is one of those below and at least one of its transfer syntaxes
is; of several, the first that the sender names. Private and unknown SOP classes and transfer syntaxes are accepted
when the setting `dicom_private` is on. User identity is not evaluated.

## Answers to C-STORE

| status | when |
|---|---|
{statuses}

Success means: bytes flushed to disk (file and folder), row committed. The same instance with the same bytes is
success and changes nothing. Other bytes under a known SOP Instance UID are success too, since nothing is lost: they
are kept apart, never shown or analysed, with an event and a caution on the study.

## Storage commitment

N-ACTION (action 1) is answered at once: `0000`, `{action}` for another action, `{argument}` for a request that
makes no sense, `{resources}` when it cannot be written down. Each instance is then read back and compared with the
SHA-256 of what was received. The N-EVENT-REPORT goes over a new association to where `dicom_peers` says that the peer
listens, with SCP role selection, or else over the association of the request while it is open. It is repeated for
{days} days, also after a restart. Failure reasons:

| reason | means |
|---|---|
{failures}

## DICOMweb

Below `/dicomweb`, with a bearer token or a session. `application/dicom+json` for metadata, `multipart/related` for
instances and frames.

| route | does |
|---|---|
{routes}

Reasons in the answer of STOW-RS (0008,1197 and 0008,1196):

| code | means |
|---|---|
{stow}

## Transfer syntaxes

All are received, kept and passed on. *Read* says whether the picture can be decoded and analysed; the others become
studies that are not analysed, with the reason.

| transfer syntax | UID | read |
|---|---|---|
{syntaxes}

## Settings

| setting | default | meaning |
|---|---|---|
{settings}

## Storage SOP classes

{count} classes. Only CR, DX and pictures are analysed; everything else stays in the list as not analysed.

| SOP class | UID |
|---|---|
{classes}
"""


def page() -> str:
    """Return the conformance statement as Markdown."""
    defaults = Settings()
    return _TEMPLATE.format(
        implementation=IMPLEMENTATION_UID,
        title=defaults.dicom_ae_title,
        associations=defaults.dicom_associations,
        pdu=defaults.dicom_pdu_bytes,
        services=_rows((_name(uid), uid or "", role, used) for uid, role, used in _SERVICES),
        rejections=_rows((", ".join(map(str, code)), when) for code, when in REJECTIONS.items()),
        statuses=_rows((f"`{status:04X}` {_words(status.name)}", means) for status, means in STATUS_MEANS.items()),
        action=f"{commitment.NO_SUCH_ACTION:04X}",
        argument=f"{commitment.INVALID_ARGUMENT:04X}",
        resources=f"{commitment.RESOURCE_LIMITATION:04X}",
        days=commitment.GIVE_UP.days,
        failures=_rows((f"`{code:04X}`", means) for code, means in commitment.FAILURES.items()),
        routes=_rows(_routes()),
        stow=_rows((f"`{code:04X}`", means) for code, means in sorted(_STOW.items())),
        syntaxes=_rows((uid.name, uid, "●" if _read(uid) else "") for uid in TRANSFER_SYNTAXES),
        settings=_rows(_settings()),
        count=len(STORAGE_CLASSES),
        classes=_rows(sorted((_NAMES.get(uid, UID(uid).name), uid) for uid in STORAGE_CLASSES)),
    )


def _rows(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _name(uid: UID | None) -> str:
    return uid.name.removesuffix(" SOP Class") if uid else "Storage"


def _words(name: str) -> str:
    return name.replace("_", " ").lower()


def _read(uid: UID) -> bool:
    """Return whether pictures in a transfer syntax can be decoded with what the base install brings."""
    try:
        return bool(get_decoder(uid).is_available)
    except NotImplementedError:
        return False


def _routes() -> Iterator[tuple[str, str]]:
    for route in dicomweb.router.routes:
        if isinstance(route, APIRoute):
            first = (route.endpoint.__doc__ or "").strip().split("\n")[0]
            for method in sorted(route.methods or ()):
                yield f"{method} `{re.sub(r':[a-z]+}', '}', route.path)}`", first


def _settings() -> Iterator[tuple[str, str, str]]:
    for name, field in Settings.model_fields.items():
        if name.startswith("dicom_"):
            shown = ", ".join(field.default) if isinstance(field.default, list) else str(field.default)
            shown = shown.lower() if isinstance(field.default, bool) else shown
            yield f"`{name}`", f"`{shown}`" if shown else "empty", field.description or ""


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
