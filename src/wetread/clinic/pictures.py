"""The pixels of a stored image, and the maps that the models left for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from wetread.clinic import store
from wetread.clinic.archive import Archive
from wetread.clinic.store import Store
from wetread.clinic.worker import unpack
from wetread.errors import NotFoundError
from wetread.radiograph.read import Limits, Radiograph, read


@dataclass(frozen=True)
class Stored:
    """One image that may be shown: its id, its study, what its sender called it, and the SHA-256 of its bytes."""

    image: str
    study: str
    name: str
    sha256: str


@dataclass(frozen=True, eq=False)
class Heat:
    """One finding's map.

    Attributes
    ----------
    values : float32 array, shape [h, w]
        Positive speaks for the finding.
    box : (x, y, w, h)
        The part of the image that it covers, as fractions of the image.
    """

    values: NDArray[np.float32]
    box: tuple[float, float, float, float]


def find(database: Store, site: str, image: str) -> Stored:
    """Return an image that may be shown.

    Raises
    ------
    NotFoundError
        When the site has no such image, or it is quarantined.
    """
    table = store.instance.c
    with database.read() as connection:
        row = connection.execute(
            sa.select(table.id, table.study, table.name, table.sha256).where(
                table.id == image, table.site == site, table.state == "stored"
            )
        ).first()
    if row is None:
        raise NotFoundError(f"image {image[:64]}: no such image at this site")
    return Stored(*row)


def radiograph(archive: Archive, image: Stored, limits: Limits) -> Radiograph:
    """Decode an image in full.

    Raises
    ------
    ReadError
        When its bytes are no radiograph that can be read.
    """
    return read(archive.path(image.sha256), name=image.name, limits=limits)


def heat(database: Store, site: str, image: str, model: str, finding: str) -> Heat:
    """Return the map that a model (short name; its newest result) left for a finding on an image.

    Raises
    ------
    NotFoundError
        When there is no such image or result, or the result has no such map.
    """
    table = store.image_result
    with database.read() as connection:
        row = connection.execute(
            sa.select(table.c.findings, table.c.maps, table.c.box)
            .join(store.instance, store.instance.c.id == table.c.instance)
            .where(table.c.instance == image, store.instance.c.site == site, table.c.model_name == model)
            .order_by(table.c.at.desc(), table.c.id.desc())
            .limit(1)
        ).first()
    names = [result["finding"] for result in row.findings] if row is not None else []
    if row is None or row.maps is None or row.box is None or finding not in names:
        raise NotFoundError(f"image {image[:64]}: model {model[:64]!r} left no map of {finding[:64]!r}")
    x, y, width, height = row.box
    return Heat(unpack(row.maps)[names.index(finding)], (x, y, width, height))
