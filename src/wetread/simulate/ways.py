"""How studies are sent: uploads (single files or zip archives), STOW-RS, or C-STORE; one answer for each patient.

The same bytes may be sent again: the server knows them, and says so.
"""

from __future__ import annotations

import io
import secrets
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import pydicom

from wetread.clinic import peers
from wetread.clinic.peers import Caller, Peer, PeerError
from wetread.clinic.stow import NO_ROOM
from wetread.errors import ClinicError, DeniedError, hide
from wetread.simulate.department import Patient

ACCEPTED = "accepted"
LATER = frozenset({408, 429, 503, 507})  # the server says: not now


@dataclass(frozen=True)
class Answer:
    """What became of one patient's files.

    Attributes
    ----------
    outcome : str
        `ACCEPTED`, or the reason of the failure.
    again : bool
        Whether the same may succeed later.
    after_s : float or None
        When, as far as the server says, in s.
    study : str
        The server's id of the study, where it says so.
    """

    outcome: str
    again: bool = False
    after_s: float | None = None
    study: str = ""

    @property
    def ok(self) -> bool:
        """Whether the server has all files."""
        return self.outcome == ACCEPTED


class Way(Protocol):
    """A way to a server."""

    where: str
    """Its address, for messages."""

    def __call__(self, patients: Sequence[Patient]) -> list[Answer]:
        """Send the files of patients together; raise `DeniedError` when nothing from us will ever be taken.

        Raises
        ------
        UnreachableError
            When there is no answer.
        """


class UnreachableError(ClinicError):
    """No server answered; it may come back."""


def admitted(client: httpx.Client) -> None:
    """Ask a server, with nothing to keep, whether it takes studies from us.

    Raises
    ------
    DeniedError
        When it does not accept the token.
    ClinicError
        When there is no server.
    """
    try:
        _post(client, "/api/v1/studies")
    except UnreachableError as error:
        if nobody(error):
            raise absent(hide(str(client.base_url)), error) from None


def nobody(error: UnreachableError) -> bool:
    """Return whether there was not even somebody to talk to."""
    return isinstance(error.__cause__, (httpx.ConnectError, httpx.UnsupportedProtocol, type(None)))


def absent(where: str, error: UnreachableError) -> ClinicError:
    """Return what to tell whoever gave an address at which nobody is."""
    return ClinicError(f"{where}: no server there ({error.__cause__ or error}); start `wetread serve`")


class Upload:
    """`POST /api/v1/studies`: the files of one patient as they are, those of several in one zip archive."""

    def __init__(self, client: httpx.Client) -> None:
        self.client, self.where = client, hide(str(client.base_url))

    def __call__(self, patients: Sequence[Patient]) -> list[Answer]:
        """Send the files of patients in one request."""
        if len(patients) == 1:
            names = [[name for name, _ in patients[0].files]]
            files = list(patients[0].files)
        else:  # two patients may have files of the same name
            names = [[f"{n}-{i}-{name}" for i, (name, _) in enumerate(p.files)] for n, p in enumerate(patients)]
            contents = (content for patient in patients for _, content in patient.files)
            files = [("batch.zip", zipped(dict(zip((n for each in names for n in each), contents, strict=True))))]
            names = [[f"batch.zip/{name}" for name in each] for each in names]
        response = _post(self.client, "/api/v1/studies", files=[("files", file) for file in files])
        if response.status_code != 201:
            return [_failed(response)] * len(patients)
        receipt = _json(response)
        taken = {image["file"]: image["study"] for image in receipt.get("images", ())}
        refused = {each["file"]: each["detail"] for each in receipt.get("refused", ())}
        return [self._one(each, taken, refused) for each in names]

    def _one(self, names: Sequence[str], taken: dict[str, str], refused: dict[str, str]) -> Answer:
        for name in names:
            if name in refused:
                return Answer(f"refused: {refused[name]}")
            if name not in taken:
                return Answer("not in the server's answer")
        return Answer(ACCEPTED, study=taken[names[0]])


class Stow:
    """`POST /dicomweb/studies`."""

    def __init__(self, client: httpx.Client) -> None:
        self.client, self.where = client, hide(str(client.base_url))

    def __call__(self, patients: Sequence[Patient]) -> list[Answer]:
        """Send the files of patients in one request."""
        boundary = secrets.token_hex(16)
        start = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = b"".join(start + content + b"\r\n" for patient in patients for _, content in patient.files)
        headers = {
            "Accept": "application/dicom+json",
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        }
        content = body + f"--{boundary}--\r\n".encode()
        response = _post(self.client, "/dicomweb/studies", content=content, headers=headers)
        if response.status_code not in (200, 202, 409):
            return [_failed(response)] * len(patients)
        failed = {
            item["00081155"]["Value"][0]: int(item["00081197"]["Value"][0])
            for item in _json(response).get("00081198", {}).get("Value", ())
            if "00081155" in item
        }
        if response.status_code == 409 and not failed:
            return [_failed(response)] * len(patients)
        return [_stored([failed.get(_sop_uid(content), 0) for _, content in p.files]) for p in patients]


class Store:
    """C-STORE, the patients of a batch over one association."""

    def __init__(self, peer: Peer, caller: Caller | None = None) -> None:
        self.peer, self.caller, self.where = peer, caller or Caller("SIMULATION"), str(peer)

    def __call__(self, patients: Sequence[Patient]) -> list[Answer]:
        """Send the files of patients."""
        films = [pydicom.dcmread(io.BytesIO(content)) for patient in patients for _, content in patient.files]
        try:
            sent = iter(peers.store(self.peer, films, self.caller))
        except PeerError as error:
            raise UnreachableError(str(error)) from None
        answers = []
        for patient in patients:
            states = [next(sent) for _ in patient.files]
            answers.append(_stored([0 if one.ok else one.status for one in states]))
        return answers


def zipped(files: dict[str, bytes]) -> bytes:
    """Return a zip archive of files by name."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _stored(reasons: Sequence[int | None]) -> Answer:
    """Return what became of a patient whose instances were answered so; None is no answer."""
    bad = [reason for reason in reasons if reason != 0]
    if not bad:
        return Answer(ACCEPTED)
    first = bad[0]
    return Answer("no answer" if first is None else f"0x{first:04X}", again=first is None or first == NO_ROOM)


def _sop_uid(content: bytes) -> str:
    header = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
    return str(header.SOPInstanceUID)


def _post(client: httpx.Client, path: str, **more: Any) -> httpx.Response:
    try:
        response = client.post(path, **more)
    except httpx.HTTPError as error:
        raise UnreachableError(type(error).__name__) from error
    if response.status_code in (401, 403):
        raise DeniedError(f"{hide(str(client.base_url))}: token not accepted; make one with `wetread token`")
    return response


def _failed(response: httpx.Response) -> Answer:
    wait = response.headers.get("Retry-After", "")
    after = float(wait) if wait.isdecimal() else None
    return Answer(f"HTTP {response.status_code}", response.status_code in LATER, after)


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        value = response.json()
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
