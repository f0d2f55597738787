"""What a picture's first bytes promise: format, size, depth and marks, read before anything is decoded.

A decoder allocates what a header asks for, so a few hostile bytes can ask for gigabytes. These parsers touch only
headers, never pixels, and treat every field as a claim.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

Format = Literal["dicom", "jpeg", "png", "webp", "tiff"]

PHANTOM_MARK = b"wetread-phantom"  # a JPEG comment (COM segment) that starts so marks a synthetic radiograph

_TIFF_SIZES = {1: 1, 3: 2, 4: 4}  # BYTE, SHORT, LONG: the types of the fields that are read here


@dataclass(frozen=True)
class Header:
    """The claims of one picture.

    Attributes
    ----------
    height, width : int
        In pixels, before any orientation is applied.
    samples : int
        Samples per pixel: 1 grey, 3 colour, 4 with alpha or CMYK.
    bits : int
        Bits per sample.
    frames : int
        Pictures in the file; 2 stands for "more than one".
    phantom : bool
        Whether the file is marked as synthetic.
    codec : str
        ``"baseline"``, ``"extended"``, ``"lossless"`` or ``"ls"`` of the JPEG family, ``"j2k"`` for JPEG 2000.
    """

    height: int
    width: int
    samples: int = 1
    bits: int = 8
    frames: int = 1
    phantom: bool = False
    codec: str = ""


def sniff(data: bytes) -> Format | None:
    """Tell the format by content, never by the file's name.

    A DICOM file without preamble is told by its first element, which is of group 0002 or 0008.
    """
    if data[128:132] == b"DICM":
        return "dicom"
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "tiff"
    if data[:2] in (b"\x02\0", b"\x08\0") and data[3:4] == b"\0" and len(data) > 16:
        return "dicom"
    return None


def header(data: bytes, kind: Format) -> Header:
    """Parse the header of a JPEG, PNG, WebP or TIFF file.

    Raises
    ------
    ValueError
        Saying what is missing or impossible.
    """
    parse = {"jpeg": jpeg, "png": _png, "webp": _webp, "tiff": _tiff}[kind]
    try:
        found = parse(data)
    except (struct.error, IndexError):
        raise ValueError("its header is cut short") from None
    if found.height < 1 or found.width < 1:
        raise ValueError(f"its header says {found.width}×{found.height} pixels")
    return found


def jpeg(data: bytes) -> Header:
    """Parse a JPEG or JPEG-LS stream up to its first scan (ITU-T T.81 Annex B, T.87 Annex C)."""
    phantom = False
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            raise ValueError("its JPEG segments are broken")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == 0xFE and data[at + 4 : at + 4 + len(PHANTOM_MARK)] == PHANTOM_MARK:
            phantom = True
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            bits, height, width, samples = struct.unpack_from(">BHHB", data, at + 4)
            codec = {0xF7: "ls", 0xC3: "lossless"}.get(marker, "baseline" if bits == 8 else "extended")
            later = data[at + 2 + length : at + 2 + length + 65536]  # a comment may also follow the frame header
            phantom = phantom or (b"\xff\xfe" in later and _comment(data, at + 2 + length))
            return Header(height, width, samples, bits, phantom=phantom, codec=codec)
        if marker in (0xD9, 0xDA):
            break
        at += 2 + max(length, 2)
    raise ValueError("it has no JPEG frame header")


def _comment(data: bytes, at: int) -> bool:
    """Tell whether a phantom's comment stands between the frame header and the first scan."""
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xD9, 0xDA):
        if data[at + 1] == 0xFE and data[at + 4 : at + 4 + len(PHANTOM_MARK)] == PHANTOM_MARK:
            return True
        at += 2 + max(int.from_bytes(data[at + 2 : at + 4], "big"), 2)
    return False


def j2k(data: bytes) -> Header:
    """Parse the SIZ segment of a JPEG 2000 codestream, with or without the JP2 boxes around it (ISO 15444-1 A.5.1)."""
    at = data.find(b"\xff\x4f\xff\x51", 0, 4096)
    if at < 0:
        raise ValueError("it has no JPEG 2000 codestream")
    try:
        right, bottom, left, top = struct.unpack_from(">4I", data, at + 8)
        samples, depth = struct.unpack_from(">HB", data, at + 40)
    except struct.error:
        raise ValueError("its header is cut short") from None
    return Header(bottom - top, right - left, samples, (depth & 0x7F) + 1, codec="j2k")


def _png(data: bytes) -> Header:
    if data[12:16] != b"IHDR":
        raise ValueError("it has no PNG header")
    width, height, bits, colour = struct.unpack_from(">IIBB", data, 16)
    return Header(height, width, {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(colour, 4), bits)


def _webp(data: bytes) -> Header:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[i : i + 3], "little") + 1 for i in (24, 27))
        return Header(height, width, 3, frames=2 if data[20] & 2 else 1)
    if kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, 21)
        return Header((packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1, 3)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header(height & 0x3FFF, width & 0x3FFF, 3)
    raise ValueError("it has no WebP header")


def _tiff(data: bytes) -> Header:
    """Parse the first directory of a TIFF file (TIFF 6.0, section 2)."""
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    fields: dict[int, int] = {}
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", data, entry)
        size = _TIFF_SIZES.get(kind)
        if tag not in (256, 257, 258, 277, 339) or size is None or number < 1:
            continue
        where = entry + 8
        if size * number > 4:
            (where,) = struct.unpack_from(order + "I", data, where)
        (fields[tag],) = struct.unpack_from(order + {1: "B", 2: "H", 4: "I"}[size], data, where)
    (following,) = struct.unpack_from(order + "I", data, at + 2 + 12 * count)
    if fields.get(339, 1) != 1:
        raise ValueError("its samples are signed or floating-point; store 8- or 16-bit unsigned values")
    return Header(
        fields.get(257, 0), fields.get(256, 0), fields.get(277, 1), fields.get(258, 1), frames=2 if following else 1
    )
