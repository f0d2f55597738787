"""The single transform from a radiograph to the array that a model sees, the same in packing and in service.

A radiograph is squashed to `source` × `source` pixels. The ``"lungs"`` transform then cuts out the `size` × `size`
region that resembles a lung template best; the ``"plain"`` transform shrinks the whole to `size` × `size`, as does
``"lungs"`` where nothing resembles the template. Exposure is left alone: the model's own graph normalises it.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from wetread.errors import ModelError
from wetread.radiograph import lungs as _lungs
from wetread.radiograph.read import Limits, Radiograph, read

MIN_MATCH = 0.5  # below, the region found on real films is as often wrong as right; see docs/radiographs.md
_MAX_SIDE = 2048


@dataclass(frozen=True)
class Seen:
    """What a model sees of a radiograph.

    Attributes
    ----------
    array : uint8 array, shape [size, size]
    box : (float, float, float, float)
        x, y, width and height of the part of the radiograph that `array` shows, as fractions of the whole.
    match : float
        How well that part resembles the template, -1 to 1; 0 for the plain transform.
    """

    array: NDArray[np.uint8]
    box: tuple[float, float, float, float]
    match: float


@dataclass(frozen=True, eq=False)
class Transform:
    """From a radiograph to the array that a model sees. Two are equal when they give the same arrays.

    Attributes
    ----------
    name : {"lungs", "plain"}
    source : int
        Side in pixels to which the whole radiograph is squashed.
    size : int
        Side in pixels of the array.
    template : uint8 array, shape [size, size], or None
        The lungs to look for.
    min_match : float
        Below this resemblance the whole radiograph is shown.
    reduced : bool
        Whether `read` may decode JPEG at reduced scale, down to `source` pixels.
    """

    name: Literal["lungs", "plain"]
    source: int = 256
    size: int = 224
    template: NDArray[np.uint8] | None = None
    min_match: float = MIN_MATCH
    reduced: bool = True

    def __post_init__(self) -> None:
        if self.name not in ("lungs", "plain"):
            raise ModelError(f"transform {self.name!r}: unknown; known are 'lungs' and 'plain'")
        if not 8 <= self.size <= self.source <= _MAX_SIDE:
            raise ModelError(
                f"transform {self.name}: size {self.size} and source {self.source} must hold 8 ≤ size ≤ source ≤ 2048"
            )
        if not -1 <= self.min_match <= 1:
            raise ModelError(f"transform {self.name}: min_match {self.min_match} must lie within -1 and 1")
        template = self.template
        if (self.name == "lungs") != (template is not None):
            raise ModelError(f"transform {self.name}: a template belongs to 'lungs', and only to it")
        if template is not None and (template.shape != (self.size, self.size) or template.dtype != np.uint8):
            raise ModelError(
                f"transform lungs: the template is {template.dtype} {template.shape}, wanted uint8 "
                f"({self.size}, {self.size}); make one with `wetread template`"
            )

    def read(self, source: Path | bytes, name: str = "", limits: Limits | None = None) -> Radiograph:
        """Read a file at the scale that this transform needs; raises `ReadError` as `wetread.radiograph.read.read`."""
        return read(source, name=name, limits=limits, reduce_to=self.source if self.reduced else None)

    def __call__(self, radiograph: Radiograph) -> Seen:
        """Return what a model sees of `radiograph`."""
        whole = _lungs.squash(radiograph, self.source)
        match = 0.0
        if self.template is not None:
            x, y, match = _lungs.locate(whole, self.template)
            if match >= self.min_match:
                share = self.size / self.source
                array = np.ascontiguousarray(whole[y : y + self.size, x : x + self.size])
                return Seen(array, (x / self.source, y / self.source, share, share), match)
        if self.size != self.source:
            whole = cv2.resize(whole, (self.size, self.size), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        return Seen(whole, (0.0, 0.0, 1.0, 1.0), match)

    def scaled(self, size: int) -> Transform:
        """Return the same transform for arrays of another size: the template and the whole shrink or grow with it."""
        if self.template is None or size == self.size:
            return replace(self, size=size, source=max(self.source, size))
        template = cv2.resize(self.template, (size, size), interpolation=cv2.INTER_AREA)
        source = round(self.source * size / self.size)
        return replace(self, size=size, source=source, template=np.asarray(template, np.uint8))

    def parameters(self) -> dict[str, Any]:
        """Return what defines the transform as JSON-ready values; the template appears as its SHA-256."""
        digest = None if self.template is None else hashlib.sha256(self.template.tobytes()).hexdigest()
        return {
            "name": self.name,
            "source": self.source,
            "size": self.size,
            "template": digest,
            "min_match": self.min_match,
            "reduced": self.reduced,
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Transform) and self.parameters() == other.parameters()

    def __hash__(self) -> int:
        return hash(json.dumps(self.parameters(), sort_keys=True))

    def save(self, file: Path | io.BytesIO) -> None:
        """Write the transform as ``.npz``, the same bytes every time; `load` is the inverse."""
        arrays = {"parameters": np.frombuffer(json.dumps(self.parameters(), sort_keys=True).encode(), np.uint8)}
        if self.template is not None:
            arrays["template"] = self.template
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:  # np.savez stamps the time of day
            for key, array in arrays.items():
                buffer = io.BytesIO()
                np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{key}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED)

    @classmethod
    def load(cls, file: Path | bytes) -> Transform:
        """Read a transform that `save` wrote.

        Raises
        ------
        ModelError
            When the file is missing or is no transform, whatever its bytes.
        """
        name = file.name if isinstance(file, Path) else "transform.npz"
        try:
            data = file.read_bytes() if isinstance(file, Path) else file
        except OSError as error:
            raise ModelError(f"{name}: cannot be opened: {error.strerror}; make one with `wetread template`") from None
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                values = json.loads(_member(archive, "parameters").tobytes())
                template = _member(archive, "template") if "template.npy" in archive.namelist() else None
            given = {k: values[k] for k in ("name", "source", "size", "min_match", "reduced")}
            if not isinstance(given["reduced"], bool) or not all(isinstance(given[k], int) for k in ("source", "size")):
                raise TypeError("a parameter is of the wrong kind")
            transform = cls(**given, template=template)
            if transform.parameters() != values:
                raise ValueError("the template is not the one that its parameters name")
        except ModelError as error:
            raise ModelError(f"{name}: {error}") from None
        except Exception as error:  # a zip of hostile bytes can raise anything
            raise ModelError(f"{name}: not a transform ({error}); make one with `wetread template`") from None
        return transform


def _member(archive: zipfile.ZipFile, key: str) -> NDArray[np.uint8]:
    """Read one uint8 array, small enough to be part of a transform."""
    info = archive.getinfo(f"{key}.npy")
    if info.file_size > _MAX_SIDE**2 + 4096:
        raise ValueError(f"{key} is too large")
    array = np.lib.format.read_array(io.BytesIO(archive.read(info)), allow_pickle=False)
    if array.dtype != np.uint8:
        raise ValueError(f"{key} is {array.dtype}, wanted uint8")
    return array


def plain(size: int = 224, source: int | None = None) -> Transform:
    """Return the transform that shows the whole radiograph, squashed at once unless a `source` is given."""
    return Transform("plain", source=source or size, size=size)


def lungs(template: NDArray[np.uint8], *, source: int = 256, min_match: float = MIN_MATCH) -> Transform:
    """Return the transform that shows the region of a radiograph that resembles `template` best."""
    return Transform("lungs", source=source, size=template.shape[0], template=template, min_match=min_match)
