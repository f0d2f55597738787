"""The body of a phantom: a seeded set of simple solids, in cm, that every view projects.

Axes: x to the patient's left, y towards the feet with 0 at the lung apices, z to the front with 0 in the
middle of the chest. Sides are numbered 0 (right, x < 0) and 1 (left, x > 0).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
SIGN = (-1.0, 1.0)


@dataclass(frozen=True)
class Solid:
    """An ellipsoid: centre and semi-axes in cm, turned by `tilt` radians in the frontal plane."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    tilt: float = 0.0


@dataclass
class Body:
    """One patient. Lengths in cm; `*_gain` are factors on the normal size, which findings change.

    Attributes
    ----------
    width, depth, height : float
        Half width and half depth of the thoracic cavity, and its height from apices to costophrenic angles.
    fat, breast : float
        Thickness of the fat, and radius of the breasts (0 for none).
    dome : list of float
        Height y of the right and of the left hemidiaphragm's top.
    lift : list of float
        How far the findings raise each hemidiaphragm.
    shift : float
        Displacement x of heart and mediastinum by volume loss or pressure.
    """

    sex: Literal["M", "F"]
    age: int
    width: float
    depth: float
    height: float
    fat: float
    muscle: float
    breast: float
    dome: list[float]
    dome_rise: float
    heart: float
    heart_turn: float
    trunk: float
    mediastinum: float
    aorta: float
    bone: float
    vessels: float
    arms: float
    scapula: float
    apex_x: float
    seed: int
    study: int = 0
    heart_gain: float = 1.0
    mediastinum_gain: float = 1.0
    shift: float = 0.0
    lift: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def outer(self, y: Array | float) -> Array:
        """Return the x of the lateral lung border at height `y`."""
        y = np.asarray(y, np.float32)
        cap = 1 - (1 - np.clip(y / 3.2, 0, 1)) ** 2
        t = 1 - (1 - np.clip(y / (0.84 * self.height), 0, 1)) ** 2.4
        return np.asarray(self.apex_x + 2.4 * np.sqrt(cap) + (self.width - self.apex_x - 2.4) * t**0.85, np.float32)

    def medial(self, y: Array | float) -> Array:
        """Return the x of the medial lung border at height `y`."""
        t = np.clip(np.asarray(y, np.float32) / 4.5, 0, 1)
        return np.asarray(self.apex_x - (self.apex_x - 0.7) * np.sqrt(1 - (1 - t) ** 2), np.float32)

    def half_depth(self, y: Array | float) -> Array:
        """Return the half depth of the lungs at height `y`."""
        t = np.clip(np.asarray(y, np.float32) / (0.55 * self.height), 0, 1)
        return np.asarray(self.depth * (0.3 + 0.7 * np.sqrt(1 - (1 - t) ** 2)), np.float32)

    def top(self, side: int) -> float:
        """Return the y of a hemidiaphragm's top, findings included."""
        return self.dome[side] - self.lift[side]

    def hilum(self, side: int) -> NDArray[np.float64]:
        """Return the position of a hilum; the left one stands about 1 cm higher."""
        y = 0.36 * self.height + (0.5, -0.5)[side]
        return np.array([SIGN[side] * 3.3 + 0.7 * self.shift, y, -0.5])

    def heart_solids(self) -> list[Solid]:
        """Return ventricles, right atrium and outflow tract."""
        k, t = self.heart * self.heart_gain, self.heart * self.heart_gain**0.35  # chambers grow, the trunk little
        y = self.top(1) - 2.5 - 0.25 * k
        x = self.shift + 0.25 * (k - 4.8)
        turn = self.heart_turn
        return [
            Solid((x + 2.75, y, 2.0), (1.4 * k, 0.9 * k, 1.35 * k), turn),
            Solid((x + 1.3, y + 2.5, 1.5), (1.2 * k, 0.9 * k, 1.4 * k), 0.1),
            Solid((x - 1.0, y - 0.2, 1.5), (0.65 * k, 0.98 * k, 1.2 * k), 0.15),
            Solid((x + 1.9, y - 0.3 * k - 0.65 * t, 1.5), (0.68 * t * self.trunk, 1.2 * t, 1.1 * t), -0.38),
        ]

    def great_vessels(self) -> list[Solid]:
        """Return aortic arch, ascending and descending aorta, vena cava and the rest of the mediastinum."""
        m, a, x, h = self.mediastinum * self.mediastinum_gain, self.aorta, self.shift * 0.6, self.height
        knob = 0.265 * h
        bulge = 1 + 0.45 * (self.mediastinum_gain - 1)
        return [
            Solid((x + m - 0.1, knob, -1.5), (1.4 * a * bulge, 1.6 * a * bulge, 4.5)),
            Solid((x + 1.25 + 0.25 * a, 0.62 * h, -4.6), (1.25 * a, 0.42 * h, 1.35 * a)),
            Solid((x - m + 0.7, 0.36 * h, 0.8), (1.5 * bulge, 0.3 * h, 3.5)),
            Solid((x - 0.1, 0.2 * h, -0.5), (m + 0.15, 0.36 * h, 7.0)),
            Solid((x, 0.0, -1.0), (m + 1.4, 0.17 * h, 6.0)),
        ]


def draw_body(seed: int, study: int = 0) -> Body:
    """Draw a patient: age 18 to 95, either sex, healthy.

    Parameters
    ----------
    seed : int
        Not negative; the same seed gives the same body.
    study : int
        Which examination of this patient: findings, pose and exposure differ.
    """
    rng = np.random.default_rng([seed, 1])
    female = bool(rng.random() < 0.46)
    age = int(np.clip(rng.normal(58, 18), 18, 95))
    scale = float(np.clip(rng.normal(0.955 if female else 1.03, 0.045), 0.84, 1.16))
    inspiration = float(np.clip(rng.normal(1.0, 0.05), 0.87, 1.1))
    fat = float(np.clip(rng.gamma(3.2, 0.55), 0.4, 5.0))
    height = 26.0 * scale * inspiration
    rise = float(rng.uniform(4.2, 5.6)) * scale
    dome = height - rise - 0.2
    return Body(
        sex="F" if female else "M",
        age=age,
        width=13.6 * scale * float(rng.normal(1, 0.035)),
        depth=8.6 * scale * float(rng.normal(1.02 if age > 65 else 1, 0.06)),
        height=height,
        fat=fat,
        muscle=float(rng.uniform(1.4, 2.4)) * (0.85 if female else 1.1),
        breast=float(np.clip(rng.normal(5.4 + 0.5 * fat, 1.0), 3.5, 9)) * scale if female else 0.0,
        dome=[dome, dome + float(np.clip(rng.normal(1.1, 0.5), 0, 2.2))],
        dome_rise=rise,
        heart=4.75 * scale * float(np.clip(rng.normal(1, 0.045), 0.9, 1.09)),
        heart_turn=float(rng.normal(0.66, 0.09)),
        mediastinum=2.5 * scale * float(np.clip(rng.normal(1, 0.07), 0.85, 1.16)),
        aorta=scale * (0.88 + 0.003 * age) * float(np.clip(rng.normal(1, 0.06), 0.85, 1.15)),
        bone=float(np.clip(rng.normal(1.05 - 0.003 * max(age - 50, 0), 0.08), 0.7, 1.3)),
        vessels=float(np.clip(rng.normal(1, 0.1), 0.75, 1.25)),
        arms=float(rng.uniform(0.1, 0.55)),
        scapula=float(rng.uniform(0.0, 1.0)),
        apex_x=5.0 * scale,
        trunk=float(rng.uniform(0.8, 1.12)),
        seed=seed,
        study=study,
    )


def breathe_out(body: Body) -> None:
    """Lie the body down for a bedside radiograph: higher diaphragm, arms at the sides."""
    rng = np.random.default_rng([body.seed, 7, body.study])
    rise = float(rng.uniform(0.3, 2.6))
    body.lift = [lift + rise for lift in body.lift]
    body.arms *= 0.5


def rib(body: Body, index: int, side: int) -> NDArray[np.float64]:
    """Return the centre line of rib `index` (0 to 11) as points [n, 3], from the spine to its front end."""
    y0 = -1.7 + index * body.height * 0.094
    end = (2.3, 2.2, 2.25, 2.3, 2.3, 2.3, 2.25, 2.15, 2.0, 1.75, 1.3, 0.9)[index]
    phi = np.linspace(-1.44, -1.44 + end, 20 if index < 10 else 14)
    u = (phi + 1.44) / 2.4
    drop = (5.8, 6.6, 7.4, 8.3, 9.0, 9.6, 10.2, 10.6, 10.8, 10.4, 9.0, 7.5)[index] * body.height / 26
    y = y0 + drop * (0.66 * u**0.85 + 0.24 * u**2) - 0.5 * np.sin(np.clip(u / 0.4, 0, 1) * np.pi)
    wide = body.outer(np.maximum(y + 0.8, 0.6)) + 0.35
    if index == 0:
        wide = np.full_like(wide, body.outer(2.2)) * 0.82
    deep = body.half_depth(np.maximum(y, 1.0)) + 0.5
    return np.stack([SIGN[side] * wide * np.cos(phi) ** 0.8, y, deep * np.sin(phi)], 1)


def clavicle(body: Body, side: int) -> NDArray[np.float64]:
    """Return the centre line of a clavicle as points [n, 3], from sternum to shoulder."""
    rng = np.random.default_rng([body.seed, 2])
    rise = rng.uniform(2.2, 5.0)
    u = np.linspace(0, 1, 20)
    x = 1.8 + u * (body.width + 0.8)
    y = 5.0 * body.height / 26 - rise * u**1.2 + 0.55 * np.sin(2 * np.pi * u)
    return np.stack([SIGN[side] * x, y, 5.5 - 6.5 * u], 1)


def inside(body: Body, points: NDArray[np.float64], side: NDArray[np.int_]) -> NDArray[np.bool_]:
    """Return which points [n, 3] lie in the lung of their side [n], above its hemidiaphragm."""
    x, y, z = np.array(SIGN)[side] * points[:, 0], points[:, 1], points[:, 2]
    outer, medial = body.outer(y), body.medial(y)
    q = np.abs((2 * x - outer - medial) / (outer - medial + 1e-6))
    wall = np.where(2 * x > outer + medial, q**3, q**6) + (z / body.half_depth(y)) ** 2 < 0.97
    xc, ax, zc, az = dome_shape(body)
    r2 = ((x - xc) / ax) ** 2
    dome = np.array([body.top(0), body.top(1)])[side] + body.dome_rise * (
        0.35 * r2 + 0.65 * r2**2 + ((z - zc) / az) ** 2
    )
    return np.asarray(wall & (y > 0) & (y < dome))


def dome_shape(body: Body) -> tuple[float, float, float, float]:
    """Return x and z of a dome's top and its extents: (xc, ax, zc, az)."""
    xc = 0.46 * body.width
    return xc, body.width - xc, 0.22 * body.depth, 1.15 * body.depth


def vessel_tree(body: Body, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Grow the pulmonary vessels out of both hila.

    Returns
    -------
    segments : float array [n, 2, 3]
    radii : float array [n]
        Thinner at every branching, by Murray's law (the cubes of the daughters' radii add up).
    """
    count = 12
    side = np.repeat([0, 1], count)
    angle = np.tile(np.linspace(-1.3, 1.55, count), 2) + rng.normal(0, 0.12, 2 * count)
    lean = rng.normal(0, 0.5, 2 * count)
    way = np.stack([np.array(SIGN)[side] * np.cos(angle), np.sin(angle) * 1.15, lean], 1)
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    at = np.stack([body.hilum(0), body.hilum(1)])[side] + way * 0.6 + rng.normal(0, 0.35, (2 * count, 3))
    radius = rng.uniform(0.2, 0.38, 2 * count) * body.vessels * np.where(np.abs(angle) < 0.5, 0.75, 1.0)
    segments, radii = [], []
    for generation in range(8):
        steps = 2 if generation < 3 else 1
        length = (2.1 * 0.87**generation) * rng.uniform(0.6, 1.25, len(at)) / steps
        for _ in range(steps):
            bend = way + rng.normal(0, 0.17, way.shape)
            bend[:, 1] += 0.035  # gravity draws blood to the bases
            way = bend / np.linalg.norm(bend, axis=1, keepdims=True)
            to = at + way * length[:, None]
            keep = inside(body, to, side) | (generation == 0)
            at, way, radius, to, length, side = at[keep], way[keep], radius[keep], to[keep], length[keep], side[keep]
            segments.append(np.stack([at, to], 1))
            radii.append(radius)
            at = to
            radius = radius * 0.97
        share = rng.uniform(0.3, 0.7, len(at))
        spread = rng.normal(0, 1, way.shape)
        spread -= (spread * way).sum(1, keepdims=True) * way
        spread /= np.linalg.norm(spread, axis=1, keepdims=True) + 1e-9
        spread *= rng.uniform(0.25, 0.6, len(at))[:, None]
        way = np.concatenate([way + spread * (1.3 - share[:, None]), way - spread * (0.3 + share[:, None])])
        way /= np.linalg.norm(way, axis=1, keepdims=True)
        at, side = np.concatenate([at, at]), np.concatenate([side, side])
        radius = np.concatenate([radius * share ** (1 / 3), radius * (1 - share) ** (1 / 3)])
        keep = radius > 0.04
        at, way, radius, side = at[keep], way[keep], radius[keep], side[keep]
        if not len(at):
            break
    return np.concatenate(segments), np.concatenate(radii)
