"""Support devices: lines, tubes, pacemakers, wires and electrodes, as strokes of metal and plastic."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from wetread.radiograph.anatomy import SIGN
from wetread.radiograph.projection import SUPERSAMPLING, Points, Scene


def _smooth(points: Points, count: int = 48) -> Points:
    """Return a Catmull-Rom curve through points [n, 3]."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    n = len(points) - 1
    at = np.linspace(0, n - 1e-6, count)
    i = at.astype(int)
    t = (at - i)[:, None]
    a, b, c, d = padded[i], padded[i + 1], padded[i + 2], padded[i + 3]
    return np.asarray(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))


class _Tray:
    """Canvases that devices are drawn on: metal, plastic, and the region they take."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.metal, self.plastic, self.region = scene.canvas(), scene.canvas(), scene.canvas()

    def line(self, points: Points, radius: float, metal: float = 0.0, plastic: float = 0.0) -> None:
        if metal:
            self.scene.stroke(self.metal, points, radius, metal)
        if plastic:
            self.scene.stroke(self.plastic, points, radius, plastic)
        self.scene.stroke(self.region, points, radius + 0.35, 255)

    def tube(self, points: Points, radius: float, strength: float) -> None:
        """Draw a tube: two walls and one radiopaque stripe."""
        side = np.array([radius, 0.0, radius]) / 1.4
        self.line(points - side, 0.05, plastic=strength)
        self.line(points + side, 0.05, plastic=strength)
        self.line(points + side * 0.4, 0.06, metal=70)


def support_devices(scene: Scene, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Put one or more devices into the scene and return the region that they take."""
    tray = _Tray(scene)
    kinds = [_tracheal_tube, _central_line, _pacemaker, _chest_tube, _sternal_wires, _electrodes, _gastric_tube]
    chance = np.array([0.2, 0.26, 0.2, 0.1, 0.1, 0.06, 0.08])
    count = 1 + int(rng.random() < 0.5) + int(rng.random() < 0.25)
    for index in rng.choice(len(kinds), count, replace=False, p=chance):
        kinds[index](tray, np.random.default_rng(int(rng.integers(2**31))))
    metal = scene.blur(scene.shrink(tray.metal, 0.42), 0.04)
    plastic = scene.blur(scene.shrink(tray.plastic, 3.0), 0.04)
    scene.metal += metal
    scene.soft += plastic
    return scene.shrink(tray.region, 1.0) > 0.4


def _tracheal_tube(tray: _Tray, rng: np.random.Generator) -> None:
    scene = tray.scene
    tip = scene.carina - np.array([0, rng.uniform(1.5, 5.0), 0])
    start = scene.trachea_top + np.array([rng.normal(0, 0.6), -3, 1.0])
    tray.tube(_smooth(np.stack([start, (start + tip) / 2 + rng.normal(0, 0.2, 3), tip])), 0.45, 180)


def _central_line(tray: _Tray, rng: np.random.Generator) -> None:
    body = tray.scene.body
    side = int(rng.random() < 0.3)
    s, h = SIGN[side], body.height
    tip = np.array([-2.2 + body.shift, h * rng.uniform(0.33, 0.5), 1.0])
    joint = np.array([-2.0 + body.shift, 0.2 * h, 1.0])
    route = rng.random()
    if route < 0.45:
        points = [[s * 4.5, -7, 2], [s * 3.6, -2, 2.5], [s * 2.5, 2.5, 2]]
    elif route < 0.75:
        points = [[s * (body.width - 1), 5, 4], [s * 8, 2.6, 5], [s * 4.2, 2.6, 4]]
    else:
        points = [[s * (body.width + 5), 12, -1], [s * (body.width + 2), 4.5, 0], [s * 8, 2.2, 3], [s * 4, 2.6, 3]]
    if side:
        points.append([0.5, 0.15 * h, 2.0])
    tray.line(
        _smooth(np.array([*points, joint, tip])), rng.uniform(0.09, 0.14), metal=rng.uniform(70, 120), plastic=120
    )


def _pacemaker(tray: _Tray, rng: np.random.Generator) -> None:
    scene = tray.scene
    body = scene.body
    s = 1.0 if rng.random() < 0.8 else -1.0
    centre = np.array(
        [s * (body.width * 0.72 + rng.normal(0, 0.6)), 0.19 * body.height + rng.normal(0, 0.8), body.depth + 2]
    )
    turn = rng.uniform(-0.6, 0.6)
    angle = np.linspace(0, 2 * np.pi, 40)
    r = rng.uniform(2.1, 2.7)
    shape = np.stack(
        [
            np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.6 * r,
            np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** 0.6 * r * 0.82,
        ]
    )
    c, t = np.cos(turn), np.sin(turn)
    outline = np.stack(
        [centre[0] + c * shape[0] - t * shape[1], centre[1] + t * shape[0] + c * shape[1], np.full(40, centre[2])], 1
    )
    if not scene.frontal:
        outline[:, 2] += np.cos(angle) * 0.4
    fixed = np.round((scene.pixel(outline) * SUPERSAMPLING + 0.5) * 16).astype(np.int32)
    cv2.fillPoly(tray.metal, [fixed], 210, cv2.LINE_AA, 4)
    cv2.fillPoly(tray.region, [fixed], 255, cv2.LINE_AA, 4)
    inner = np.round(
        (scene.pixel(centre + (outline - centre) * [0.7, 0.45, 0.7] + [0, 0.35, 0]) * SUPERSAMPLING + 0.5) * 16
    )
    cv2.fillPoly(tray.metal, [inner.astype(np.int32)], 255, cv2.LINE_AA, 4)
    heart = body.heart_solids()[0]
    ends = [np.add(heart.centre, (1.2, 2.4, 2.0))]
    if rng.random() < 0.65:
        ends.append(np.array([-2.6 + body.shift, 0.5 * body.height, 2.5]))
    for n, end in enumerate(ends):
        route = np.stack(
            [
                centre - np.array([0, 1.6, 0]),
                [s * 8.5, 1.6 + 0.3 * n, 5],
                [s * 4, 2.8, 4],
                [-1.7 + body.shift + 0.2 * n, 0.2 * body.height, 1.5],
                [-2.4 + body.shift, 0.42 * body.height, 1.5],
                [-1.2 + body.shift - 1.0 * n, 0.56 * body.height - 1.0 * n, 2.0],
                end,
            ]
        )
        tray.line(_smooth(route, 70), 0.08, metal=190)
        tray.line(_smooth(np.stack([end - [0.8, 0.1, 0], end]), 4), 0.12, metal=240)


def _chest_tube(tray: _Tray, rng: np.random.Generator) -> None:
    body = tray.scene.body
    side = int(rng.random() < 0.5)
    s, h = SIGN[side], body.height
    entry = h * rng.uniform(0.5, 0.72)
    tip = np.array([s * rng.uniform(5, 8), h * rng.uniform(0.12, 0.4), rng.uniform(-4, 4)])
    route = np.stack(
        [
            [s * (body.width + 5), entry + 3, 0],
            [s * (body.width - 0.4), entry, 0],
            [s * (body.width - 3), entry - 3, tip[2] / 2],
            tip,
        ]
    )
    tray.tube(_smooth(route), 0.4, 200)


def _sternal_wires(tray: _Tray, rng: np.random.Generator) -> None:
    body = tray.scene.body
    turn = np.linspace(0, 2 * np.pi, 24)
    for n in range(int(rng.integers(5, 8))):
        y = 0.2 * body.height + n * 2.3
        r = rng.uniform(0.8, 1.15)
        loop = np.stack(
            [
                r * np.cos(turn) + rng.normal(0, 0.15),
                y + 0.45 * np.sin(turn + rng.normal(0, 0.3)),
                np.full(24, body.depth),
            ],
            1,
        )
        tray.line(loop, 0.06, metal=230)
        tray.line(np.stack([loop[6], loop[6] + [rng.normal(0, 0.3), 0.5, 0]]), 0.07, metal=250)


def _electrodes(tray: _Tray, rng: np.random.Generator) -> None:
    body = tray.scene.body
    turn = np.linspace(0, 2 * np.pi, 20)
    gather = np.array([rng.normal(0, 4), body.height + 8, body.depth + 3])
    for x, y in ((-0.75, 0.12), (0.75, 0.1), (0.7, 0.72), (-0.7, 0.7))[: int(rng.integers(3, 5))]:
        at = np.array([x * body.width + rng.normal(0, 0.8), y * body.height + rng.normal(0, 0.8), body.depth + 2.5])
        ring = at + 0.55 * np.stack([np.cos(turn), np.sin(turn), 0 * turn], 1)
        tray.line(ring, 0.16, metal=110)
        tray.line(at[None] + np.array([[0, -0.1, 0], [0, 0.1, 0]]), 0.28, metal=170)
        tray.line(_smooth(np.stack([at, (at + gather) / 2 + rng.normal(0, 2.0, 3), gather])), 0.08, metal=130)


def _gastric_tube(tray: _Tray, rng: np.random.Generator) -> None:
    body = tray.scene.body
    points = np.array(
        [
            [0.3, -8, 0],
            [0.2, 2, -2],
            [0.8, 0.4 * body.height, -3.5],
            [1.2, body.top(1) - 1, -2.5],
            [3.5, body.top(1) + 3, 0],
            [6.0, body.top(1) + 4.5, 1],
        ]
    )
    tray.line(_smooth(points), 0.17, metal=60, plastic=230)
