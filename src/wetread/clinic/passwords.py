"""Passwords: what may be one, and their Argon2id hashes."""

from __future__ import annotations

import functools
import secrets
import threading
import unicodedata

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from wetread.errors import BusyError, ClinicError

SHORTEST, LONGEST = 12, 1024
_LETTERS = 5  # different ones, at least

# RFC 9106's second choice, 64 MiB: argon2-cffi's own default, which follows the state of the art.
hasher = PasswordHasher()
# Each takes 64 MiB and a core for a moment; more at once would let strangers fill the memory.
_at_once = threading.BoundedSemaphore(2)
_PATIENCE_S = 20.0


def check(password: str, name: str) -> None:
    """Refuse what is no good password for the account of this name.

    Raises
    ------
    ClinicError
        Saying why; never with the password in it.
    """
    plain = _plain(password)
    if not SHORTEST <= len(plain) <= LONGEST:
        raise ClinicError(f"password: must have {SHORTEST} to {LONGEST} characters; a few words in a row are good")
    if len(set(plain.casefold())) < _LETTERS:
        raise ClinicError(f"password: must have at least {_LETTERS} different characters")
    if len(name) > 3 and name.casefold() in plain.casefold():
        raise ClinicError("password: must not contain the account's name")


def hash_(password: str) -> str:
    """Return the Argon2id hash, with its parameters and salt, as it is stored.

    Raises
    ------
    BusyError
        When too many are being made.
    """
    with _Turn():
        return hasher.hash(_plain(password).encode("utf-8", "surrogatepass"))


def verify(stored: str | None, password: str) -> bool:
    """Return whether the password is the one; without a stored one (None), take as long and return False.

    Raises
    ------
    BusyError
        When too many are being looked at.
    """
    if len(password) > LONGEST:
        password, stored = "", None
    with _Turn():
        try:
            hasher.verify(stored or _nobody(hasher), _plain(password).encode("utf-8", "surrogatepass"))
        except (VerificationError, InvalidHashError):
            return False
    return stored is not None


def outdated(stored: str) -> bool:
    """Return whether a hash was made with other parameters than new ones are."""
    return hasher.check_needs_rehash(stored)


class _Turn:
    def __enter__(self) -> None:
        if not _at_once.acquire(timeout=_PATIENCE_S):
            raise BusyError("too many people log in at once; try again in a moment")

    def __exit__(self, *_: object) -> None:
        _at_once.release()


@functools.lru_cache(maxsize=4)
def _nobody(with_: PasswordHasher) -> str:
    """Return the hash of a password that nobody knows."""
    return with_.hash(secrets.token_bytes(32))


def _plain(password: str) -> str:
    """Return the password with one form for each character, however the keyboard composed it."""
    return unicodedata.normalize("NFKC", password)
