"""Where the bytes of a collection lie: in folders or in zip archives, which are never unpacked."""

from __future__ import annotations

import os
import zipfile
from functools import lru_cache
from pathlib import Path

import polars as pl

from wetread.errors import DatasetError

SCHEMA = {"path": pl.String, "file": pl.String, "member": pl.String, "bytes": pl.Int64}
_SYSTEM = ("__MACOSX",)  # what file browsers leave in archives and folders


def index(root: Path) -> tuple[pl.DataFrame, list[dict[str, str]]]:
    """List every file below `root`, looking into the zip archives on the way.

    Hidden files and those that file browsers leave behind (``.DS_Store``, ``__MACOSX``) are no part of a
    collection and are passed over.

    Parameters
    ----------
    root : Path
        A folder, or one zip archive.

    Returns
    -------
    files : DataFrame
        Sorted by `path`: `path` (relative to `root` or to the archive, with ``/``), `file` (on disk), `member`
        (name inside the archive, or null) and `bytes` (uncompressed size).
    refused : list of dict
        `image` and `reason` of what cannot be listed.

    Raises
    ------
    DatasetError
        When `root` is missing, or is a file but no zip archive.
    """
    if root.is_file():
        if not zipfile.is_zipfile(root):
            raise DatasetError(f"{root}: neither a folder nor a zip archive; give the collection's root")
        found = [(root, root.name, root.stat().st_size)]
    elif root.is_dir():
        found = _walk(root)
    else:
        raise DatasetError(f"{root}: no such folder or zip archive; give the collection's root")
    rows: list[tuple[str, str, str | None, int]] = []
    refused: list[dict[str, str]] = []
    for file, path, size in found:
        if not _is_text(path):
            refused.append({"image": _printable(path), "reason": "file name: not UTF-8; rename the file"})
        elif file.suffix.lower() != ".zip":
            rows.append((path, str(file), None, size))
        else:
            try:
                with zipfile.ZipFile(file) as archive:
                    rows.extend(
                        (info.filename, str(file), info.filename, info.file_size)
                        for info in archive.infolist()
                        if not info.is_dir() and not _is_hidden(info.filename) and _is_text(info.filename)
                    )
            except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
                refused.append({"image": path, "reason": f"unreadable: zip archive: {error}; download it again"})
    return pl.DataFrame(rows, schema=SCHEMA, orient="row").sort("path", "file"), refused


def read(file: str, member: str | None, limit: int | None = None) -> bytes:
    """Return the bytes of one listed file.

    Parameters
    ----------
    file, member : str, str or None
        As `index` lists them.
    limit : int, optional
        Most bytes to accept; what an archive claims about a member is not trusted.

    Raises
    ------
    DatasetError
        When the file is gone, damaged, encrypted or too large.
    """
    name = f"{file}:{member}" if member else file
    try:
        if member is None:
            with Path(file).open("rb") as stream:
                data = stream.read(-1 if limit is None else limit + 1)
        else:
            with _archive(file).open(member) as stream:
                data = stream.read(-1 if limit is None else limit + 1)
    except Exception as error:  # zipfile raises zlib.error, RuntimeError, KeyError, EOFError ... on hostile bytes
        raise DatasetError(f"{name}: {type(error).__name__}: {error}") from None
    if limit is not None and len(data) > limit:
        raise DatasetError(f"{name}: larger than {limit} bytes")
    return data


def close() -> None:
    """Close the archive that `read` keeps open, and forget its listing."""
    _archive.cache_clear()


@lru_cache(maxsize=1)  # the listing of one published batch takes some 50 MB
def _archive(file: str) -> zipfile.ZipFile:
    return zipfile.ZipFile(file)


def _walk(root: Path) -> list[tuple[Path, str, int]]:
    found = []
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True):  # collections are often linked together
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not _is_hidden(name)]
        for name in names:
            file = Path(folder, name)
            if not _is_hidden(name) and file.is_file():
                found.append((file, file.relative_to(root).as_posix(), file.stat().st_size))
    return found


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part in _SYSTEM for part in path.split("/"))


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()
