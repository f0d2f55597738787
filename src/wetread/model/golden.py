"""Golden radiographs: what a package must answer, checked whenever it is loaded.

Seeded phantoms (never patients) are kept as raw pixels, *before* the transform, together with the
outputs that the model gave when it was packaged. So a wrong transform, a broken runtime or a graph
that does not belong to its thresholds is refused at load instead of served.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wetread.errors import ModelError, WetreadError
from wetread.radiograph.read import Radiograph

if TYPE_CHECKING:
    from wetread.model.package import Package
    from wetread.radiograph.pixels import Transform

MAX_BYTES = 64 * 2**20
"""Largest golden.npz that is accepted, in bytes after decompression."""

DEFAULT_TOLERANCE = {
    "fp32": {"probability": 2e-3, "abnormal": 2e-3, "maps": 2e-2, "features": 1e-2, "familiarity": 1e-2},
    "bf16": {"probability": 5e-2, "abnormal": 5e-2, "maps": 2.5e-1, "features": 1e-1, "familiarity": 1e-1},
    "int8": {"probability": 5e-2, "abnormal": 5e-2, "maps": 2.5e-1, "features": 1e-1, "familiarity": 1e-1},
}
"""Stated tolerance per precision: see `differences`. Reduced precision rounds differently on every CPU."""


class Outputs(NamedTuple):
    """What the graph of a package gives for a batch of B images and F findings.

    Attributes
    ----------
    probability : float32 array, shape [B, F]
        Calibrated probability per finding, 0 to 1.
    abnormal : float32 array, shape [B]
        Calibrated chance of any abnormality, 0 to 1.
    maps : float32 array, shape [B, F, h, w]; of studies [B, 2, F, h, w]
        Gradient of each finding's log-odds with respect to the last features, times the features,
        summed over channels, before ReLU. Positive places speak for the finding.
    features : float32 array, shape [B, D]
        Pooled features before the head.
    familiarity : float32 array, shape [B]
        How much the image resembles the training images; higher is more familiar.
    """

    probability: NDArray[np.float32]
    abnormal: NDArray[np.float32]
    maps: NDArray[np.float32]
    features: NDArray[np.float32]
    familiarity: NDArray[np.float32]


Run = Callable[[NDArray[np.uint8]], Outputs]
"""Runs a graph on uint8 [B, 1, H, W]; one of studies on [B, 2, H, W], where a missing view is black."""


@dataclass(frozen=True, eq=False)
class Golden:
    """Raw radiographs and the outputs that they must give.

    Attributes
    ----------
    raw : tuple of uint8 or uint16 arrays, each [H, W]
        Phantom pixels before the transform; the dtype is the depth (8 or 16 bits). Of studies frontal and lateral
        in turn; a missing view is one black pixel.
    outputs : Outputs
        For all of them, in order.
    """

    raw: tuple[NDArray[np.uint8] | NDArray[np.uint16], ...]
    outputs: Outputs

    def to_bytes(self) -> bytes:
        """Return the content of `golden.npz`; equal radiographs and outputs give equal bytes."""
        arrays = {f"raw_{index}": pixels for index, pixels in enumerate(self.raw)} | self.outputs._asdict()
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:  # np.savez may stamp the time of day
            for name, array in arrays.items():
                member = io.BytesIO()
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED)
        return content.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Golden:
        """Read `golden.npz`, trusting nothing in it.

        Raises
        ------
        ModelError
            When it is no npz, too large, holds Python objects, or lacks an array.
        """
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > MAX_BYTES:
                raise ModelError(f"golden.npz: {size} bytes unpacked, at most {MAX_BYTES} allowed; rebuild the package")
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                count = sum(name.startswith("raw_") for name in arrays.files)
                raw = tuple(np.asarray(arrays[f"raw_{index}"]) for index in range(count))
                outputs = Outputs(*(np.asarray(arrays[name]) for name in Outputs._fields))
        except ModelError:
            raise
        except Exception as error:  # hostile zips and headers raise nearly anything
            raise ModelError(f"golden.npz: not readable ({_one_line(error)}); rebuild the package") from None
        if not raw or any(p.ndim != 2 or p.dtype not in (np.uint8, np.uint16) or not p.size for p in raw):
            raise ModelError("golden.npz: raw_0 … must be uint8 or uint16 [H, W]; rebuild the package")
        views = 2 if outputs.maps.ndim == 5 and outputs.maps.shape[1] == 2 else 1
        for name, rank, values in zip(Outputs._fields, (2, 1, 3 + views, 2, 1), outputs, strict=True):
            if values.dtype != np.float32 or values.ndim != rank or len(values) * views != len(raw):
                raise ModelError(
                    f"golden.npz: {name} is {values.dtype} {list(values.shape)}, expected float32 of rank {rank} "
                    f"for {len(raw) // views} images; rebuild the package"
                )
        return cls(raw, outputs)

    @property
    def views(self) -> int:
        """1 for a model of images, 2 for one of studies."""
        return self.outputs.maps.ndim - 3


def make(
    transform: Transform, run: Run, seeds: Sequence[int] = (1, 2, 3, 4), *, size: int = 320, views: int = 1
) -> Golden:
    """Make golden radiographs from phantoms and record what the model answers.

    They differ in depth and in aspect, so that a transform that forgets either is found.

    Parameters
    ----------
    transform : Transform
        The package's transform.
    run : callable
        Runs the package's graph on the runtime that it will be served by, uint8 [B, 1, H, W] to `Outputs`.
    seeds : sequence of int
        One phantom each.
    size : int
        Side of the phantoms in pixels.
    views : int
        2 for a model of studies: one of them lacks the lateral view, one the frontal.
    """
    from wetread.radiograph import phantom  # only packaging draws phantoms; loading must stay light

    raw: list[NDArray[np.uint8] | NDArray[np.uint16]] = []
    for index, seed in enumerate(seeds):
        radiograph = phantom.make(seed, view=("PA", "AP")[index % 2], size=size).radiograph
        eight = (radiograph.pixels >> (radiograph.bits - 8)).astype(np.uint8)
        eight = eight[: size - 8 * (index % 3), : size - 12 * (index % 2)]
        raw.append(eight.astype(np.uint16) * np.uint16(257) if index % 4 == 1 else eight)
        if views > 1:
            side = phantom.make(seed, view="LATERAL", size=size).radiograph
            raw.append((side.pixels >> (side.bits - 8)).astype(np.uint8))
            if index % 4 > 1:
                raw[-1 - index % 2] = np.zeros((1, 1), np.uint8)
    return Golden(tuple(raw), run(see(transform, raw, views)))


def see(
    transform: Transform, raw: Sequence[NDArray[np.uint8] | NDArray[np.uint16]], views: int = 1
) -> NDArray[np.uint8]:
    """Return raw phantom pixels as the model sees them: uint8 [B, views, size, size]."""
    seen = [
        transform(Radiograph(pixels, bits=8 * pixels.dtype.itemsize, full_size=pixels.shape, source="phantom")).array
        for pixels in raw
    ]
    return np.stack(seen).reshape(-1, views, transform.size, transform.size)


def differences(expected: Outputs, got: Outputs) -> dict[str, float]:
    """Return the largest difference per output.

    Probabilities compare as they are; maps, features and familiarity, whose scale is the network's
    own, relative to the largest expected magnitude. Infinite when shapes differ or a value is not finite.
    """
    result = {}
    for name, wanted, given in zip(Outputs._fields, expected, got, strict=True):
        if wanted.shape != given.shape or not np.isfinite(given).all():
            result[name] = np.inf
            continue
        scale = 1.0 if name in ("probability", "abnormal") else max(float(np.abs(wanted).max(initial=0.0)), 1e-6)
        result[name] = float(np.abs(wanted - given).max(initial=0.0)) / scale
    return result


def check(package: Package, run: Run) -> dict[str, float]:
    """Run the golden radiographs of a package and compare with what they must give.

    Returns
    -------
    dict of str to float
        Largest difference per output, each within the tolerance of `package.meta`.

    Raises
    ------
    ModelError
        Naming the output, by how much it differs, and the tolerance.
    """
    golden = package.golden
    try:
        found = differences(golden.outputs, run(see(package.transform, golden.raw, golden.views)))
    except ModelError:
        raise
    except (WetreadError, ValueError, TypeError, ArithmeticError) as error:
        raise ModelError(f"{package.name}: golden radiographs cannot be run: {_one_line(error)}") from None
    allowed = DEFAULT_TOLERANCE[package.meta.precision] | package.meta.tolerance
    for name, difference in found.items():
        if not difference <= allowed[name]:
            raise ModelError(
                f"{package.name}: golden check failed: {name} differs by {difference:.3g}, tolerance "
                f"{allowed[name]:.3g}; its transform, graph or the runtime is not the one it was packaged with"
            )
    return found


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
