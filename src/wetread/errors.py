"""What can go wrong, and what to do about it.

Every message is one line that names the file or field, the value, and the remedy::

    WetreadError
    ├── ConfigError      a setting, recipe or task file is wrong
    ├── ReadError        a file is not a radiograph that we can read; carries a Code
    ├── DatasetError     a collection or packed dataset is wrong
    ├── ModelError       a model package is missing, broken or does not keep its golden outputs
    │   └── MissingError     it is not there, not whole (yet), or the disk does not give it
    ├── TrainError       a training run cannot start, resume or be exported
    ├── BusyError        a queue is full; try again later
    └── ClinicError      the clinic's store, archive or intake refused something
        ├── NotFoundError    no such study, image, token or page
        ├── ConflictError    the state does not allow it (claimed by another, already signed)
        ├── FullError        no room for more, or the disk refuses; nothing was kept
        └── DeniedError      the caller may not do this
"""

from __future__ import annotations

import re
from enum import StrEnum


class Code(StrEnum):
    """Why an image is in the worklist as *not analysed*. Stable: stored, sent, and shown."""

    NOT_CHEST = "NOT_CHEST"
    LATERAL_ONLY = "LATERAL_ONLY"
    CHILD = "CHILD"
    ADULT = "ADULT"
    NOT_RADIOGRAPH = "NOT_RADIOGRAPH"
    SCREENSHOT = "SCREENSHOT"
    INVERTED = "INVERTED"
    UNFAMILIAR = "UNFAMILIAR"
    UNREADABLE = "UNREADABLE"
    TOO_LARGE = "TOO_LARGE"
    FOR_PROCESSING = "FOR_PROCESSING"
    MODEL_FAILED = "MODEL_FAILED"
    REJECTED = "REJECTED"


class Caution(StrEnum):
    """What a reader should know about an image that *was* analysed. Stable: stored, sent, and shown."""

    AGE_UNKNOWN = "AGE_UNKNOWN"
    VIEW_UNKNOWN = "VIEW_UNKNOWN"
    CROPPED = "CROPPED"
    EXPOSURE = "EXPOSURE"
    TEXT = "TEXT"
    UNUSUAL = "UNUSUAL"


class WetreadError(Exception):
    """The root of everything that Wetread raises on purpose."""


class ConfigError(WetreadError):
    """A setting, recipe or task file is wrong."""


class ReadError(WetreadError):
    """A file is not a radiograph that can be read.

    Parameters
    ----------
    message : str
        One line: the file, what was wrong, and what to do.
    code : Code
        The stable reason that worklist, API and command line show.
    """

    def __init__(self, message: str, code: Code = Code.UNREADABLE) -> None:
        super().__init__("".join(c if c.isprintable() else " " for c in message))  # it may quote what a file holds
        self.code = code


class DatasetError(WetreadError):
    """A collection or packed dataset is wrong."""


class ModelError(WetreadError):
    """A model package is missing, broken, or does not keep its golden outputs."""


class MissingError(ModelError):
    """A model package is not there, lacks files, or cannot be read: nothing is said about what it holds."""


class TrainError(WetreadError):
    """A training run cannot start, resume or be exported."""


class BusyError(WetreadError):
    """A queue is full; the caller should try again later."""


class ClinicError(WetreadError):
    """The clinic's store, archive or intake refused something."""


class NotFoundError(ClinicError):
    """No such study, image, token or page."""


class FullError(ClinicError):
    """There is no room for more, or the disk refuses it; nothing was kept, and the sender may try again later."""


class ConflictError(ClinicError):
    """The present state does not allow it."""


class DeniedError(ClinicError):
    """The caller may not do this."""


_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^\s'\"<>]*)")


def hide(text: str) -> str:
    """Return a text whose addresses are cut to scheme, host and port: user, path and query may be secrets."""

    def short(found: re.Match[str]) -> str:
        host, rest = re.split(r"(?=[/?#\\])|$", found[2].rpartition("@")[2], maxsplit=1)
        return f"{found[1]}://{'…@' if '@' in found[2] else ''}{host}{'/…' if rest.strip('/') else ''}"

    return _ADDRESS.sub(short, text)
