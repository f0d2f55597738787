"""Parallel projection of a body: path lengths, in cm, of the rays of one view through its solids.

Every path length is a closed form on the pixel grid, or a tube stroked along its projected centre line.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from wetread.radiograph.anatomy import SIGN, Array, Body, Solid, dome_shape
from wetread.radiograph.read import View

Points = NDArray[np.float64]
SUPERSAMPLING = 2
# Broken bones: (bone, index, side) to (place along it from 0 to 1, displacement in cm, radius of the callus in cm).
Breaks = dict[tuple[str, int, int], tuple[float, NDArray[np.float64], float]]


def ellipsoid_path(
    u: Array, v: Array, centre: tuple[float, float], radii: tuple[float, float, float], tilt: float = 0.0
) -> Array:
    """Return the length of parallel rays through an ellipsoid.

    Parameters
    ----------
    u, v : float32 array [H, W] or broadcastable to it
        Where each ray meets the image plane, in cm.
    centre : (float, float)
    radii : (float, float, float)
        Semi-axes along u, along v, and along the ray.
    tilt : float
        Turns the first two axes in the image plane, in radians.
    """
    c, s = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
    du, dv = u - np.float32(centre[0]), v - np.float32(centre[1])
    a = (du * c + dv * s) / np.float32(radii[0])
    b = (dv * c - du * s) / np.float32(radii[1])
    return np.asarray(2 * np.float32(radii[2]) * np.sqrt(np.maximum(1 - a * a - b * b, 0)), np.float32)


def capsule_path(u: Array, v: Array, start: Sequence[float], end: Sequence[float], radii: tuple[float, float]) -> Array:
    """Return the length of parallel rays through a tapering rod that lies in the image plane."""
    x, y, ax, ay = (np.float32(value) for value in (*start[:2], end[0] - start[0], end[1] - start[1]))
    du, dv = u - x, v - y
    t = np.clip((du * ax + dv * ay) / (ax * ax + ay * ay), 0, 1)
    r = np.float32(radii[0]) + np.float32(radii[1] - radii[0]) * t
    d2 = (du - t * ax) ** 2 + (dv - t * ay) ** 2
    return np.asarray(2 * np.sqrt(np.maximum(r * r - d2, 0)), np.float32)


def ease(x: Array) -> Array:
    """Return the smooth step that rises from 0 to 1 over 0 <= x <= 1."""
    x = np.clip(x, 0, 1)
    return np.asarray(x * x * (3 - 2 * x), np.float32)


def cloud(rng: np.random.Generator, size: int, cells: int, octaves: int = 4, gain: float = 0.6) -> Array:
    """Return smooth random texture [size, size] of mean 0 and deviation 1; `cells` sets the coarsest grain."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        n = cells * 2**octave + 3
        grain = rng.standard_normal((n, n), dtype=np.float32)
        total += cv2.resize(grain, (size, size), interpolation=cv2.INTER_CUBIC) * np.float32(gain**octave)
    return np.asarray(total / total.std(), np.float32)


class Scene:
    """One view of one body: the pixel grid in cm, and what the rays pass through.

    Attributes
    ----------
    u, v : float32 array [H, W]
        Image plane in cm: u is x in a frontal view and -z in a lateral one; v is y.
    body_path, soft, bone, metal, gas : float32 array [H, W]
        Length through the body, and tissue added, bone, metal and air outside the lungs.
    lung : list of float32 array [H, W]
        Length through aerated lung on each side.
    whole : list of float32 array [H, W]
        The same before any finding: the lung fields.
    wall : list of float32 array [H, W]
        0 in the middle of a lung, 1 at the chest wall, -1 at the mediastinum; in a lateral view 1 in front, -1 behind.
    depth, dome : list of float32 array [H, W]
        Half the length through each pleural cavity, and how far its hemidiaphragm reaches along the ray.
    heart, central : float32 array [H, W]
        Length through the heart, and through the great vessels and the rest of the mediastinum.
    texture : float32 array [H, W]
        Relative fine structure of the lungs.
    carina, trachea_top : float array [3]
    breaks, broken : dict, bool array [H, W]
        Which bones are broken, and where that shows.
    vessels : float32 array [H, W]
        Length through vessels.
    density : list of float32 array [H, W]
        Factor on the attenuation of aerated lung.
    """

    def __init__(self, body: Body, view: View, size: int, breaks: Breaks | None = None) -> None:
        self.body, self.view, self.size = body, view, size
        self.breaks = breaks or {}
        self.broken = np.zeros((size, size), np.bool_)
        self.frontal = view != "LATERAL"
        rng = np.random.default_rng([body.seed, 3, body.study, ("PA", "AP", "LATERAL").index(view)])
        spread = 1.4 if view == "AP" else 1.0
        field_width = max(2 * (body.width + 2.6), body.height + 8.5) * rng.uniform(1.02, 1.2)
        if not self.frontal:
            field_width = (body.height + 9) * rng.uniform(1.0, 1.08)
        self.cm = float(field_width / size)
        roll = rng.normal(0, 0.018 * spread)
        self.yaw = float(rng.normal(0, 0.035 * spread)) if self.frontal else 0.0
        self.magnification = 1.12 if view == "AP" else 1.0
        centre = np.array([rng.normal(0, 0.5 * spread), body.height * 0.47 + rng.normal(0, 0.7)])
        if not self.frontal:
            centre[0] += 0.5
        c, s = np.cos(roll), np.sin(roll)
        self._to_cm = np.array([[c, -s], [s, c]]) * self.cm
        self._centre = centre
        steps = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
        (uc, ur), (vc, vr) = self._to_cm.astype(np.float32)
        self.u = (steps * uc + np.float32(centre[0]))[None] + (steps * ur)[:, None]
        self.v = (steps * vc + np.float32(centre[1]))[None] + (steps * vr)[:, None]
        self._to_pixel = np.linalg.inv(self._to_cm).T
        layers: list[Array] = [np.zeros((size, size), np.float32) for _ in range(9)]
        self.soft, self.bone, self.metal, self.gas, self.body_path = layers[:5]
        self.vessels, self.heart, self.central, self.texture = layers[5:]
        self.lung: list[Array] = []
        self.wall: list[Array] = []
        self.depth: list[Array] = []
        self.dome: list[Array] = []
        self.carina = self.trachea_top = np.zeros(3)
        self._lungs()
        self.whole = [path.copy() for path in self.lung]
        self.density = [np.ones((size, size), np.float32) for _ in SIGN]

    def plane(self, points: Points) -> Points:
        """Return where points [n, 3] in cm fall on the image plane, as (u, v) in cm."""
        points = np.atleast_2d(points)
        u = points[:, 0] + self.yaw * points[:, 2] if self.frontal else -points[:, 2]
        return np.stack([u, points[:, 1]], 1)

    def pixel(self, points: Points) -> Points:
        """Return where points [n, 3] in cm fall, in pixels (column, row)."""
        offset = self.plane(points) - self._centre
        return np.asarray(offset @ self._to_pixel + (self.size - 1) / 2)

    def solid(self, solid: Solid) -> Array:
        """Return the path lengths [H, W] through one ellipsoid."""
        return self.union([solid])

    def union(self, solids: Sequence[Solid]) -> Array:
        """Return the path lengths [H, W] through ellipsoids that run into each other: the longest of them."""
        total = np.zeros_like(self.soft)
        for solid in solids:
            u, v = self.plane(np.array([solid.centre]))[0]
            radii, tilt = solid.radii, solid.tilt
            if not self.frontal:
                a, b, c = solid.radii
                tall = float(np.hypot(a * np.sin(tilt), b * np.cos(tilt)))
                radii, tilt = (c, tall, a * b / tall), 0.0
            column, row = self.pixel(np.array([solid.centre]))[0]
            reach = max(radii[:2]) / self.cm + 2
            box = tuple(slice(max(0, int(at - reach)), max(0, int(at + reach) + 2)) for at in (row, column))
            path = ellipsoid_path(self.u[box], self.v[box], (u, v), radii, tilt)
            np.maximum(total[box], path, out=total[box])
        return total

    def canvas(self) -> NDArray[np.uint8]:
        """Return an empty supersampled canvas for `stroke`."""
        return np.zeros((self.size * SUPERSAMPLING,) * 2, np.uint8)

    def stroke(self, canvas: NDArray[np.uint8], points: Points, radius: float, value: float) -> None:
        """Draw a line of half width `radius` cm along points [n, 3], `value` 0 to 255."""
        self.stroke_pixels(canvas, self.pixel(points), radius, value)

    def stroke_pixels(self, canvas: NDArray[np.uint8], pixels: Points, radius: float, value: float) -> None:
        """Draw a line through pixels [n, 2] = (column, row); lines thinner than a pixel are fainter instead."""
        wide = 2 * radius / self.cm * SUPERSAMPLING
        thick = max(1, round(wide))
        fixed = np.round((pixels * SUPERSAMPLING + 0.5) * 16).astype(np.int32)
        cv2.polylines(canvas, [fixed], False, float(value * min(1.0, wide / thick)), thick, cv2.LINE_AA, 4)

    def shrink(self, canvas: NDArray[np.uint8], scale: float) -> Array:
        """Return a canvas at image size; 255 becomes `scale`."""
        small = cv2.resize(canvas, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return small.astype(np.float32) * np.float32(scale / 255)

    def blur(self, image: Array, cm: float) -> Array:
        """Return the image under a Gaussian of `cm` standard deviation."""
        sigma = cm / self.cm
        if sigma < 4:
            return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32)
        step = int(sigma // 2)
        n = -(-self.size // step)
        small = cv2.resize(image, (n, n), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), sigma * n / self.size, borderType=cv2.BORDER_REPLICATE)
        return np.asarray(cv2.resize(small, (self.size, self.size), interpolation=cv2.INTER_CUBIC), np.float32)

    def _lungs(self) -> None:
        body = self.body
        rows = body.half_depth(self.v)
        outer, medial = body.outer(self.v), body.medial(self.v)
        half, middle = (outer - medial) / 2, (outer + medial) / 2
        xc, ax, zc, az = (np.float32(value) for value in dome_shape(body))
        rise = np.float32(body.dome_rise)
        in_rows = self.v > 0
        for side, sign in enumerate(SIGN):
            below = (self.v - np.float32(body.top(side))) / rise
            if self.frontal:
                x = np.float32(sign) * self.u
                q = np.clip((x - middle) / np.maximum(half, 1e-3), -1, 1)
                cube = np.abs(q * q * q)
                reach = rows * np.sqrt(1 - np.where(q > 0, cube, cube * cube))
                r2 = ((x - xc) / ax) ** 2
                dome = az * np.sqrt(np.maximum(below - r2 * (np.float32(0.35) + np.float32(0.65) * r2), 0))
                hidden = np.minimum(reach, zc + dome) - np.maximum(-reach, zc - dome)
                wall = q
            else:
                z = -self.u
                wall = np.clip(z / np.maximum(rows, 1e-3), -1, 1)
                flat = 1 - wall * wall
                near = middle - half * np.power(flat, np.float32(1 / 6))
                far = middle + half * np.cbrt(flat)
                rest = np.maximum(below - ((z - zc) / az) ** 2, 0)
                dome = ax * np.sqrt((np.sqrt(0.1225 + 2.6 * rest) - 0.35) / 1.3)
                hidden = np.minimum(far, xc + dome) - np.maximum(near, xc - dome)
                reach = (far - near) / 2
            path = (2 * reach - np.maximum(hidden, 0) * (dome > 0)) * in_rows
            self.lung.append(np.asarray(np.maximum(path, 0), np.float32))
            self.wall.append(np.asarray(wall, np.float32))
            self.depth.append(np.asarray(reach, np.float32))
            self.dome.append(np.asarray(dome, np.float32))
