"""The archive in S3: an object for each file, and copies in the data folder of what was used lately.

The contract is that of the folder: `put` returns only after S3 has confirmed the object, which is durable then. An
object is written only when it is not there yet (conditional put): its name is its content, so that one that is there is
the same. What comes back is checked against its name, since a copy goes through a network and two disks.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import s3fs
from botocore.exceptions import BotoCoreError, ClientError

from wetread.clinic.archive import CHUNK, Archive, ArchiveError
from wetread.errors import ClinicError, ConfigError, ReadError, hide

log = logging.getLogger(__name__)

IN_USE_S = 600.0  # a copy that was asked for since is never removed: somebody may be reading it
_URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*?))?/*")
_ORIGIN = "wetread-origin"
_TROUBLE = (BotoCoreError, ClientError, ConnectionError, TimeoutError)


class ChangedError(ReadError, ClinicError):
    """An object has other bytes than its name says: as a file it cannot be read, and trying again does not help."""


class Bucket(Archive):
    """Files in S3, named by content.

    Access keys come from where Amazon's tools take them: the environment, ``~/.aws``, or the machine's role.

    Parameters
    ----------
    url : str
        ``s3://bucket/prefix``.
    cache : Path
        Folder of the copies; made when missing. It may be emptied while nothing runs.
    endpoint : str
        Address of a service other than Amazon's; empty means Amazon's.
    cache_bytes : int
        Most bytes of copies, apart from those in use.
    reserve : float
        As for `Archive`; counts for the cache's disk.

    Raises
    ------
    ConfigError
        When the address is none, or the bucket cannot be reached.
    """

    def __init__(
        self, url: str, cache: Path, *, endpoint: str = "", cache_bytes: int = 10 * 2**30, reserve: float = 0.0
    ) -> None:
        found = _URL.fullmatch(url)
        if found is None:
            raise ConfigError(f"archive = {hide(url)!r}: must be s3://bucket/prefix, or empty for the data folder")
        super().__init__(cache, reserve)
        self.bucket, self.prefix, self.cache_bytes = found[1], found[2] or "", cache_bytes
        self._evicting, self._put_bytes = threading.Lock(), 0
        self._s3 = s3fs.S3FileSystem(
            endpoint_url=endpoint or None,
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 4}},
        )
        try:
            self._s3.call_s3("head_bucket", Bucket=self.bucket)
        except (OSError, *_TROUBLE) as error:
            raise ConfigError(
                f"archive {hide(url)}: cannot be reached ({hide(_line(error))}); check bucket, keys, endpoint"
            ) from None

    def path(self, sha256: str) -> Path:
        """Return the path of a copy, which is fetched when it is not there.

        Raises
        ------
        ArchiveError
            When S3 does not answer.
        ChangedError
            When it sends other bytes.
        """
        copy = super().path(sha256)
        try:
            os.utime(copy)
        except FileNotFoundError:
            self._fetch(sha256, copy)
        return copy

    def size(self, sha256: str) -> int | None:
        """Return the size of the object in bytes, None when there is none."""
        try:
            return int(self._s3.info(self._key(sha256))["size"])
        except FileNotFoundError:
            return None
        except (OSError, *_TROUBLE) as error:
            raise self._trouble(error) from None

    def age_s(self, sha256: str) -> float:
        """Return for how long the object has been there, in s; infinite when it is not."""
        try:
            made: datetime = self._s3.info(self._key(sha256))["LastModified"]
        except FileNotFoundError:
            return float("inf")
        except (OSError, *_TROUBLE) as error:
            raise self._trouble(error) from None
        return (datetime.now(UTC) - made).total_seconds()

    def remove(self, sha256: str) -> None:
        """Remove the object and its copy."""
        try:
            self._s3.call_s3("delete_object", Bucket=self.bucket, Key=self._key(sha256).split("/", 1)[1])
        except (OSError, *_TROUBLE) as error:
            raise self._trouble(error) from None
        super().path(sha256).unlink(missing_ok=True)

    def export(self, sha256: str, target: Path) -> None:
        """Write the object to `target`."""
        self._fetch(sha256, target)

    def open(self, sha256: str) -> BinaryIO:
        """Open the object itself, not its copy."""
        try:
            found: BinaryIO = self._s3.open(self._key(sha256), "rb", cache_type="readahead")
        except FileNotFoundError:
            raise
        except (OSError, *_TROUBLE) as error:
            raise self._trouble(error) from None
        return found

    def names(self) -> Iterator[str]:
        """Yield the SHA-256 of every object."""
        try:
            for key in self._s3.find(f"{self.bucket}/{self.prefix}".rstrip("/")):
                name = key.rsplit("/", 1)[1]
                if key == f"{self._folder(name)}/{name}" and re.fullmatch(r"[0-9a-f]{64}", name):
                    yield name
        except FileNotFoundError:
            return
        except (OSError, *_TROUBLE) as error:
            raise self._trouble(error) from None

    def strays(self) -> Iterator[str]:
        """Yield the key of every object in the archive's own folders that is none of its files."""
        try:
            base = "/".join(filter(None, (self.bucket, self.prefix)))
            for key in self._s3.find(base):
                if re.fullmatch(r"[0-9a-f]{2}/[^/]+", within := key.removeprefix(f"{base}/")):
                    name = within[3:]
                    if not (re.fullmatch(r"[0-9a-f]{64}", name) and name[:2] == within[:2]):
                        yield key
        except FileNotFoundError:
            return
        except (OSError, *_TROUBLE) as error:
            raise self._trouble(error) from None

    def _folder(self, sha256: str) -> str:
        return "/".join(filter(None, (self.bucket, self.prefix, sha256[:2])))

    def _key(self, sha256: str) -> str:
        return f"{self._folder(super().path(sha256).name)}/{sha256}"

    def origin(self, sha256: str) -> str:
        """Return the note that the object was made with; it stays with it."""
        try:
            return base64.urlsafe_b64decode(self._s3.metadata(self._key(sha256)).get(_ORIGIN, "")).decode()
        except FileNotFoundError:
            return ""
        except (OSError, *_TROUBLE) as error:
            raise self._trouble(error) from None

    def settle(self, sha256: str) -> None:
        """Do nothing: an object cannot be changed."""

    def noted(self) -> Iterator[str]:
        """Yield nothing: there is no note to drop."""
        return iter(())

    def _keep(self, temporary: Path, sha256: str, origin: str) -> None:
        """Put the object unless it is there, and keep the file as its copy."""
        size = temporary.stat().st_size
        more: dict[str, Any] = {"ContentType": "application/octet-stream"}
        if origin:
            more["Metadata"] = {_ORIGIN: base64.urlsafe_b64encode(origin.encode()).decode()}
        try:
            self._s3.put_file(str(temporary), self._key(sha256), mode="create", **more)
        except FileExistsError:
            pass
        except (OSError, *_TROUBLE) as error:
            if not _there(error):
                raise self._trouble(error) from None
        if self.size(sha256) != size:
            raise ArchiveError(f"archive s3://{self.bucket}: the object has another size; the file was not accepted")
        temporary.replace(super().path(sha256))
        self._evict(size)

    def _fetch(self, sha256: str, target: Path) -> None:
        handle, temporary = tempfile.mkstemp(dir=self._incoming if target.is_relative_to(self.root) else target.parent)
        os.close(handle)
        try:
            self._s3.get_file(self._key(sha256), temporary)
            with Path(temporary).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise ChangedError(f"archive s3://{self.bucket}: {sha256} came back with other bytes; restore it")
            Path(temporary).replace(target)
        except FileNotFoundError:
            return  # as in a folder: whether it is there, reading shows
        except (OSError, *_TROUBLE) as error:
            raise self._trouble(error) from None
        finally:
            Path(temporary).unlink(missing_ok=True)
        if target.is_relative_to(self.root):
            self._evict(target.stat().st_size)

    def _evict(self, added: int) -> None:
        """Remove the copies unused for longest, when enough was added since the last look to make it worth while."""
        with self._evicting:
            self._put_bytes += added
            if self._put_bytes < min(self.cache_bytes / 10, 64 * CHUNK):
                return
            self._put_bytes = 0
        copies = []
        for name in super().names():
            try:
                found = super().path(name).stat()
            except FileNotFoundError:
                continue
            copies.append((found.st_mtime, found.st_size, name))
        total, idle = sum(size for _, size, _ in copies), time.time() - IN_USE_S
        for used, size, name in sorted(copies):
            if total <= self.cache_bytes or used > idle:
                break
            super().path(name).unlink(missing_ok=True)
            total -= size

    def _trouble(self, error: Exception) -> ClinicError:
        if isinstance(error, ArchiveError):
            return error
        return ArchiveError(
            f"archive s3://{self.bucket}: {hide(_line(error))}; the file was not accepted, send it again later"
        )


def _there(error: Exception) -> bool:
    """Tell whether S3 refused a conditional put since the object is there, or is being made."""
    cause = error if isinstance(error, ClientError) else error.__cause__
    code = cause.response.get("Error", {}).get("Code") if isinstance(cause, ClientError) else None
    return code in ("PreconditionFailed", "ConditionalRequestConflict")


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
