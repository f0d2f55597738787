"""Keyed pseudonyms: a patient has the same one in every export of a site, and without the key nobody can tell whose.

The key is 256 random bits in ``learning.key`` of the data folder, made on first use and readable by its owner alone.
Whoever loses it can no longer add to earlier exports; whoever has it can find out whether somebody is in one.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from wetread.errors import ConfigError

FILE = "learning.key"
_BYTES = 32


class Pseudonyms:
    """Gives pseudonyms by a key.

    Parameters
    ----------
    key : bytes
        32 bytes.
    site : str
        Patients of two sites with one identifier are two patients.
    """

    def __init__(self, key: bytes, site: str) -> None:
        self._key, self._site = key, site

    def told(self) -> dict[str, str]:
        """Return what makes the same pseudonyms in another process of ours."""
        return {"key": self._key.hex(), "site": self._site}

    def name(self, kind: str, value: str) -> str:
        """Return a pseudonym of 32 hexadecimal digits."""
        return self._digest(kind, value).hex()[:32]

    def uid(self, value: str) -> str:
        """Return a DICOM UID in place of another: ``2.25`` and 128 bits."""
        return f"2.25.{int.from_bytes(self._digest('uid', value)[:16])}"

    def _digest(self, kind: str, value: str) -> bytes:
        message = "\0".join((kind, self._site, value)).encode("utf-8", "surrogatepass")
        return hmac.new(self._key, message, hashlib.sha256).digest()


def key(data: Path) -> bytes:
    """Return the key of a data folder, made when there is none.

    Raises
    ------
    ConfigError
        When it cannot be read or made, is none, or others may read it.
    """
    path = data / FILE
    try:
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
        except FileExistsError:
            pass
        else:
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(_BYTES))
                file.flush()
                os.fsync(file.fileno())
        found, mode = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read or made ({error.strerror}); it holds the key of pseudonyms"
        ) from None
    if mode & 0o077:
        raise ConfigError(f"{path}: others may read it (mode {mode:o}); chmod 600, and ask whether somebody did")
    if len(found) != _BYTES:
        raise ConfigError(
            f"{path}: {len(found)} bytes, not {_BYTES}; restore it, or earlier exports have other pseudonyms"
        )
    return found
