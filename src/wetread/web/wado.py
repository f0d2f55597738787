"""How WADO-RS answers: instances, headers, frames, bulk data and pictures, in the form that the caller accepts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from pydicom.uid import UID
from starlette.exceptions import HTTPException

from wetread.clinic import dicomweb
from wetread.clinic.access import Caller
from wetread.clinic.archive import CHUNK
from wetread.clinic.dicomweb import Headers, Held, Json
from wetread.clinic.frames import Frames, Window, decompressed, encode
from wetread.errors import NotFoundError, ReadError
from wetread.radiograph.read import Limits
from wetread.web import covering, multipart, negotiate
from wetread.web.api import clinic_of
from wetread.web.multipart import Piece
from wetread.web.negotiate import DICOM, FRAMES, JSON, MULTIPART, NATIVE, OCTETS
from wetread.web.security import saw

ROOT = "/dicomweb"
THUMBNAIL = 128
PICTURES = ("image/jpeg", "image/png")
MAX_PICTURES = 100  # in one answer, as of frames


class Decoding:
    """Turns what cannot be decoded into 406: the bytes as they came can still be had."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Translate a `ReadError`."""
        if isinstance(error, ReadError):
            raise HTTPException(406, f"{error}; it can be retrieved as it came, with transfer-syntax=*") from None


def root_of(request: Request) -> str:
    """Return the address of ``/dicomweb`` as the caller called it."""
    return f"{request.url.scheme}://{request.url.netloc}{ROOT}"


def headers_of(request: Request) -> Headers:
    """Return the headers that this application keeps."""
    found: Headers = request.app.state.headers
    return found


def limits_of(request: Request) -> Limits:
    """Return the limits within which files are read."""
    settings = clinic_of(request).settings
    return Limits.of(settings)


def find(
    request: Request, caller: Caller, study: str, series: str | None = None, instance: str | None = None
) -> Sequence[Held]:
    """Return instances of the caller's site, and audit that they were looked at.

    Our own results that came back are none while their study is read blind.
    """
    covering.named(caller, "what came by DICOM")
    clinic = clinic_of(request)
    found = dicomweb.find(clinic.database, caller.site, study, series, instance)
    if own := [one for one in found if one.own]:
        covered = covering.hidden(clinic, caller, list(dict.fromkeys(one.study for one in own)))
        found = [one for one in found if not (one.own and one.study in covered)]
    if not found:
        raise NotFoundError(dicomweb.NOTHING)
    for key in dict.fromkeys(one.study for one in found):
        saw(request, caller, key)
    return found


def frames_of(request: Request, held: Held) -> Frames:
    """Return the frames of an instance."""
    limits = limits_of(request)
    with Decoding():
        return Frames(dicomweb.read(clinic_of(request).archive, held, limits), limits)


def as_json(content: list[Json], media: str) -> Response:
    """Return data sets as DICOM JSON."""
    return Response(json.dumps(content, ensure_ascii=False).encode(), media_type=media)


def metadata(request: Request, found: Sequence[Held]) -> Response:
    """Return the headers of instances, their bulk data by address."""
    media, root, headers = negotiate.single(request, (JSON, "application/json")), root_of(request), headers_of(request)
    return as_json([dicomweb.resolve(headers.get(one), root + one.path) for one in found], media)


def retrieve(request: Request, caller: Caller, found: Sequence[Held]) -> Response:
    """Return instances in the best form that is accepted: as they came, else in Explicit VR Little Endian."""
    accepted = [one for one in negotiate.accepted(request) if negotiate.matches(one.part or one.media, DICOM)]
    accepted = [one for one in accepted if one.part or len(found) == 1 or negotiate.matches(one.media, MULTIPART)]
    syntaxes = {one.syntax or NATIVE for one in accepted}
    if not accepted or not all(_available(syntaxes, _syntax(request, one)) for one in found):
        raise negotiate.unacceptable([f'{MULTIPART}; type="{DICOM}"; transfer-syntax=*'])
    form = MULTIPART if negotiate.matches(accepted[0].media, MULTIPART) else DICOM
    if len(found) == 1:
        with Decoding():
            return deliver(form, DICOM, [_instance(request, found[0], syntaxes)])
    return deliver(form, DICOM, (_instance(request, one, syntaxes, strict=False) for one in found))


def _syntax(request: Request, held: Held) -> str:
    return dicomweb.first(headers_of(request).get(held), "00083002")


def _available(wanted: set[str], own: str) -> bool:
    return bool(wanted & {"*", NATIVE, own})


def _instance(request: Request, held: Held, wanted: set[str], strict: bool = True) -> Piece:
    """Return an instance with its media type; one that cannot be decompressed is given as it came unless `strict`."""
    own, archive, limits = _syntax(request, held), clinic_of(request).archive, limits_of(request)
    path = archive.path(held.sha256)
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise NotFoundError(f"image {held.id}: its file is missing; restore it from a backup") from None
    with file:
        whole = file.read(132)[128:] == b"DICM"
    original = whole and bool(wanted & {"*", own})
    if not original:
        try:
            data = decompressed(dicomweb.read(archive, held, limits), limits)
            return Piece(f"{DICOM}; transfer-syntax={NATIVE}", [data])
        except ReadError:
            if strict:
                raise
    return Piece(f"{DICOM}; transfer-syntax={own}" if UID(own).is_valid else DICOM, _pieces(path))


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            yield piece


def form_of(request: Request, found: Frames, wanted: Sequence[int]) -> tuple[str, str, str]:
    """Return (form, media type, transfer syntax) of frames: multipart, or single when one frame is asked for so."""
    own = found.syntax if found.encapsulated else NATIVE
    image = FRAMES.get(own, OCTETS)
    for one in negotiate.accepted(request):
        if negotiate.matches(one.media, MULTIPART):
            form = MULTIPART
        elif len(wanted) == 1 and not one.part:
            form = ""
        else:
            continue
        offers = [(image, own), (OCTETS, own), (OCTETS, NATIVE)]
        if not one.syntax:  # decompressed unless something else is named
            offers.reverse()
        for media, syntax in offers:
            if one.takes(syntax, media):
                return form or media, media, syntax
    raise negotiate.unacceptable(
        [f'{MULTIPART}; type="{OCTETS}"', f'{MULTIPART}; type="{image}"; transfer-syntax={own}']
    )


def deliver(form: str, media: str, pieces: Iterable[Piece], status: int = 200) -> Response:
    """Return parts as multipart, or the only one plain."""
    if form == MULTIPART:
        boundary = multipart.new_boundary()
        kind = f'{MULTIPART}; type="{media}"; boundary={boundary}'
        return StreamingResponse(multipart.write(pieces, boundary), status, media_type=kind)
    only = next(iter(pieces))
    return StreamingResponse(iter(only.content), status, media_type=only.media)


def frames(request: Request, held: Held, wanted: Sequence[int]) -> Response:
    """Return frames by number, decompressed, or as they came when the caller accepts their transfer syntax."""
    found = frames_of(request, held)
    with Decoding():
        form, media, syntax = form_of(request, found, wanted)
        limits_of(request).check("frames", found.rows, found.columns, found.samples, len(wanted))
        give = found.native if syntax == NATIVE else found.original
        return deliver(form, media, [Piece(f"{media}; transfer-syntax={syntax}", [give(number)]) for number in wanted])


def bulk_data(request: Request, held: Held, tag: str) -> Response:
    """Return one large value of the data set."""
    limits = limits_of(request)
    dataset = dicomweb.read(clinic_of(request).archive, held, limits)
    with Decoding():
        if tag.upper() == dicomweb.PIXELS:
            found = Frames(dataset, limits)
            limits.check("image", found.rows, found.columns, found.samples, found.count)
            value = b"".join(found.native(number) for number in range(1, found.count + 1))
        else:
            try:
                value = dataset[int(tag, 16)].value
            except Exception:  # absent, or nothing that can be expressed
                value = None
    if not isinstance(value, bytes):
        raise NotFoundError(f"{tag}: the instance has no such bulk data")
    for one in negotiate.accepted(request):
        if one.takes(NATIVE, OCTETS):
            form = MULTIPART if negotiate.matches(one.media, MULTIPART) else OCTETS
            return deliver(form, OCTETS, [Piece(f"{OCTETS}; transfer-syntax={NATIVE}", [value])])
    raise negotiate.unacceptable([f'{MULTIPART}; type="{OCTETS}"', OCTETS])


def render(
    request: Request, held: Held, number: int, window: str | None, viewport: str | None, quality: int
) -> Response:
    """Return a frame (from 1) as JPEG or PNG."""
    media, found = negotiate.single(request, PICTURES), frames_of(request, held)
    with Decoding():
        picture = found.picture(number, _window(window))
    return Response(encode(picture, media, quality=quality, size=_size(viewport)), media_type=media)


def render_all(
    request: Request, found: Sequence[Held], window: str | None, viewport: str | None, quality: int
) -> Response:
    """Return the first frame of each image of a study or series; 206 when some cannot be drawn."""
    headers, root, drawn = headers_of(request), root_of(request), []
    images = [one for one in found if dicomweb.PIXELS in headers.get(one)]
    form, media = _form_of_pictures(request, len(images))
    if len(images) > MAX_PICTURES:
        raise HTTPException(413, f"{len(images)} pictures, more than {MAX_PICTURES}; ask for a series or an instance")
    for one in images:
        try:
            frame = Frames(dicomweb.read(clinic_of(request).archive, one, limits_of(request)), limits_of(request))
            content = encode(frame.picture(1, _window(window)), media, quality=quality, size=_size(viewport))
            drawn.append(Piece(media, [content], f"{root}{one.path}/rendered"))
        except ReadError:
            continue
    if not drawn:
        raise HTTPException(406, "no image of it can be drawn; it can be retrieved as it came, with transfer-syntax=*")
    return deliver(form, media, drawn, 200 if len(drawn) == len(images) else 206)


def _form_of_pictures(request: Request, count: int) -> tuple[str, str]:
    """Return (form, media type) of so many pictures: a single one may go plain."""
    for one in negotiate.accepted(request):
        for media in PICTURES:
            if count == 1 and not one.part and negotiate.matches(one.media, media):
                return media, media
            if negotiate.matches(one.media, MULTIPART) and negotiate.matches(one.part or "*/*", media):
                return MULTIPART, media
    raise negotiate.unacceptable([f'{MULTIPART}; type="{media}"' for media in PICTURES])


def thumbnail(request: Request, found: Sequence[Held], viewport: str | None, number: int = 1) -> Response:
    """Return a frame of the first instance that has a picture, small."""
    headers = headers_of(request)
    shown = next((one for one in found if dicomweb.PIXELS in headers.get(one)), found[0])
    return render(request, shown, number, None, viewport or f"{THUMBNAIL},{THUMBNAIL}", 80)


def _window(text: str | None) -> Window | None:
    if text is None:
        return None
    center, width, *function = text.split(",")
    return Window(float(center), float(width), (function or ["linear"])[0].upper().replace("-", "_"))


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, height = (min(max(1, int(part)), 4096) for part in text.split(","))
    return width, height
