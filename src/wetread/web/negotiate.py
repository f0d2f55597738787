"""What a caller accepts (PS3.18 8.7): media types by weight, the type within a multipart, the transfer syntax."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.exceptions import HTTPException

MULTIPART = "multipart/related"
JSON = "application/dicom+json"
DICOM = "application/dicom"
OCTETS = "application/octet-stream"
NATIVE = "1.2.840.10008.1.2.1"
# The media type of a frame in each transfer syntax that is served as it came (PS3.18 table 8.7.3-5).
FRAMES = {
    "1.2.840.10008.1.2.4.50": "image/jpeg",
    "1.2.840.10008.1.2.4.51": "image/jpeg",
    "1.2.840.10008.1.2.4.57": "image/jpeg",
    "1.2.840.10008.1.2.4.70": "image/jpeg",
    "1.2.840.10008.1.2.4.80": "image/jls",
    "1.2.840.10008.1.2.4.81": "image/jls",
    "1.2.840.10008.1.2.4.90": "image/jp2",
    "1.2.840.10008.1.2.4.91": "image/jp2",
    "1.2.840.10008.1.2.4.201": "image/jphc",
    "1.2.840.10008.1.2.4.202": "image/jphc",
    "1.2.840.10008.1.2.4.203": "image/jphc",
    "1.2.840.10008.1.2.5": "image/dicom-rle",
}
_DEFAULTS = {  # what a media type means without a transfer syntax
    OCTETS: NATIVE,
    DICOM: NATIVE,
    "image/jpeg": "1.2.840.10008.1.2.4.70",
    "image/jls": "1.2.840.10008.1.2.4.80",
    "image/jp2": "1.2.840.10008.1.2.4.90",
    "image/jphc": "1.2.840.10008.1.2.4.201",
    "image/dicom-rle": "1.2.840.10008.1.2.5",
}


@dataclass(frozen=True)
class Accepted:
    """One media type that a caller accepts; `part` is the type of a multipart's parts, `syntax` may be ``*``."""

    media: str
    part: str = ""
    syntax: str = ""
    weight: float = 1.0

    def takes(self, syntax: str, media: str) -> bool:
        """Tell whether a part of this media type in this transfer syntax is wanted."""
        if not matches(self.part or self.media, media):
            return False
        if self.syntax:
            return self.syntax in ("*", syntax)
        if (self.part or self.media).endswith("*"):
            return syntax in (NATIVE, *FRAMES)
        return _DEFAULTS.get(media, syntax) == syntax


def accepted(request: Request) -> list[Accepted]:
    """Return what a caller accepts, the most wanted first; the query parameter ``accept`` counts before the header."""
    text = request.query_params.get("accept") or ",".join(request.headers.getlist("accept")) or "*/*"
    found = [one for one in map(_parse, _split(text)) if one.weight > 0]
    return sorted(found, key=lambda one: -one.weight)


def single(request: Request, offered: Sequence[str]) -> str:
    """Return the first of the offered media types that is most wanted.

    Raises
    ------
    HTTPException
        406 when none is wanted.
    """
    for one in accepted(request):
        for media in offered:
            if matches(one.media, media):
                return media
    raise unacceptable(offered)


def unacceptable(offered: Iterable[str]) -> HTTPException:
    """Return the error that says what could be had instead."""
    return HTTPException(406, f"Accept: none of these can be given here; accept {' or '.join(offered)}")


def matches(pattern: str, media: str) -> bool:
    """Tell whether a media type, which may have ``*`` in it, means another one."""
    kind, _, subtype = pattern.partition("/")
    own, _, other = media.partition("/")
    return kind in ("*", own) and subtype in ("*", "", other)


def _parse(text: str) -> Accepted:
    media, options = parse_options_header(text.encode("latin-1", "replace"))
    values = {key.decode("latin-1").lower(): value.decode("latin-1").strip() for key, value in options.items()}
    try:
        weight = float(values.get("q", "1"))
    except ValueError:
        weight = 0.0
    kind = media.decode("latin-1").lower()
    part = values.get("type", "").lower()
    return Accepted(kind, part, values.get("transfer-syntax", ""), weight if weight <= 1 else 0.0)


def _split(text: str) -> list[str]:
    """Split at commas outside quotes."""
    parts, quoted = [""], False
    for character in text[:4096]:
        quoted ^= character == '"'
        if character == "," and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]
