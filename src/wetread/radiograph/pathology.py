"""Findings as physical changes: what each does to the body, and to the path lengths of a scene.

`reshape` changes the body (a larger heart, a raised hemidiaphragm) before it is projected; `alter` replaces
air by fluid or tissue, or tissue by air, in a projected scene, and returns the region that a reader would point at.
Every finding draws from its own random stream, so that one does not move another.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import NDArray

from wetread.radiograph.anatomy import SIGN, Array, Body, Solid
from wetread.radiograph.devices import support_devices
from wetread.radiograph.projection import Breaks, Scene, cloud, ease

Mask = NDArray[np.bool_]
_STREAM = {
    "Enlarged Cardiomediastinum": 21,
    "Cardiomegaly": 22,
    "Lung Opacity": 23,
    "Lung Lesion": 24,
    "Edema": 25,
    "Consolidation": 26,
    "Pneumonia": 27,
    "Atelectasis": 28,
    "Pneumothorax": 29,
    "Pleural Effusion": 30,
    "Pleural Other": 31,
    "Fracture": 32,
    "Support Devices": 33,
}


def stream(body: Body, finding: str) -> np.random.Generator:
    """Return the random stream of one finding in one body: the same in every view."""
    return np.random.default_rng([body.seed, _STREAM[finding], body.study])


def reshape(body: Body, findings: Collection[str]) -> None:
    """Change the body's shape as the findings (leaves of the tree) demand."""
    if "Cardiomegaly" in findings:
        body.heart_gain = float(stream(body, "Cardiomegaly").uniform(1.26, 1.48))
    if "Enlarged Cardiomediastinum" in findings:
        body.mediastinum_gain = float(stream(body, "Enlarged Cardiomediastinum").uniform(1.5, 2.0))
    if "Atelectasis" in findings:
        kind, side, rng = _atelectasis(body)
        body.lift[side] += float(rng.uniform(1.0, 2.0) if kind == "plates" else rng.uniform(1.6, 2.8))
        if kind != "plates":
            body.shift += SIGN[side] * float(rng.uniform(0.8, 1.6))
    if "Pneumothorax" in findings:
        side, size, _ = _pneumothorax(body)
        if size > 0.5:
            body.shift -= SIGN[side] * 1.2


def alter(scene: Scene, findings: Collection[str]) -> dict[str, Mask]:
    """Apply the findings (leaves of the tree) to a scene and return the mask of each."""
    order: dict[str, Callable[[Scene, np.random.Generator], Mask]] = {
        "Cardiomegaly": _cardiomegaly,
        "Enlarged Cardiomediastinum": _wide_mediastinum,
        "Edema": _edema,
        "Lung Opacity": _faint_opacity,
        "Consolidation": _consolidation,
        "Pneumonia": _pneumonia,
        "Lung Lesion": _lesions,
        "Atelectasis": _collapse,
        "Pleural Effusion": _effusion,
        "Pneumothorax": _free_air,
        "Pleural Other": _thick_pleura,
        "Fracture": _fracture,
        "Support Devices": support_devices,
    }
    return {name: change(scene, stream(scene.body, name)) for name, change in order.items() if name in findings}


def _fill(scene: Scene, side: int, share: Array) -> Array:
    """Replace a share [H, W] of one lung's air by tissue; return the tissue gained, in cm."""
    gained = scene.lung[side] * np.clip(share, 0, 0.97)
    scene.lung[side] = scene.lung[side] - gained
    return np.asarray(gained, np.float32)


def _place(
    body: Body, rng: np.random.Generator, side: int, low: float = 0.2, high: float = 0.95
) -> NDArray[np.float64]:
    """Return a point in a lung, between the fractions `low` and `high` of its height, off its borders."""
    y = body.top(side) * rng.uniform(low, high)
    outer, medial = float(body.outer(y)), max(float(body.medial(y)), 3.0)
    x = medial + (outer - medial) * rng.uniform(0.3, 0.72)
    return np.array([SIGN[side] * x, y, float(body.half_depth(y)) * rng.uniform(-0.55, 0.55)])


def _cardiomegaly(scene: Scene, rng: np.random.Generator) -> Mask:
    shown = scene.heart > 0.8
    return np.asarray(shown if scene.frontal else shown & (scene.depth[0] > 0.5))


def _wide_mediastinum(scene: Scene, rng: np.random.Generator) -> Mask:
    return np.asarray((scene.central > 0.8) & (scene.v > 0) & (scene.v < 0.45 * scene.body.height))


def _edema(scene: Scene, rng: np.random.Generator) -> Mask:
    body = scene.body
    strength = rng.uniform(0.3, 0.6)
    mask = np.zeros(scene.soft.shape, bool)
    texture = cloud(rng, scene.size, scene.size // 16, 3)
    canvas = scene.canvas()
    for side, sign in enumerate(SIGN):
        x, y, z = body.hilum(side)
        reach = rng.uniform(4.8, 6.6)
        centre = np.array([[x + sign * 2.0, y + 2.5, z]])
        u, v = scene.plane(centre)[0]
        haze = np.exp(-0.5 * (((scene.u - u) / (0.72 * reach)) ** 2 + ((scene.v - v) / (1.15 * reach)) ** 2))
        share = strength * haze * (1 + 0.22 * texture)
        gained = _fill(scene, side, np.maximum(share, 0))
        mask |= (haze > 0.45) & (scene.whole[side] > 2) & (gained > 0.3)
        for _ in range(int(rng.integers(7, 14))):
            at = body.top(side) + rng.uniform(-6.5, 2.0)
            edge = float(body.outer(at)) - 0.3
            length = rng.uniform(1.2, 2.4)
            line = np.array([[sign * edge, at, 0.0], [sign * (edge - length), at + rng.normal(0.1, 0.2), 0.0]])
            line[:, 2] = rng.uniform(-4, 4)
            scene.stroke(canvas, line, 0.06, 210)
    lines = scene.shrink(canvas, 1.6) * (scene.lung[0] + scene.lung[1] > 1)
    scene.soft += lines
    scene.vessels = scene.vessels * 1.3
    return mask


def _blob(
    scene: Scene, centre: NDArray[np.float64], radius: float, rng: np.random.Generator, rough: float, soft: float = 0.6
) -> Array:
    """Return a share [H, W] of 0 to 1: a rounded region of irregular outline that fades over `soft` radii."""
    u, v = scene.plane(centre)[0]
    ratio, turn = rng.uniform(0.75, 1.3), rng.uniform(0, np.pi)
    c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    du, dv = (scene.u - np.float32(u)) / np.float32(radius), (scene.v - np.float32(v)) / np.float32(radius)
    d = np.hypot((du * c + dv * s) * np.float32(ratio), (dv * c - du * s) / np.float32(ratio))
    if rough > 0:
        d = d + np.float32(rough) * cloud(rng, scene.size, max(3, int(scene.size * scene.cm / (1.4 * radius))), 3)
    return ease((1 + soft / 2 - d) / soft)


def _faint_opacity(scene: Scene, rng: np.random.Generator) -> Mask:
    side = int(rng.random() < 0.5)
    share = _blob(scene, _place(scene.body, rng, side), rng.uniform(3.0, 5.0), rng, 0.15, 1.0)
    gained = _fill(scene, side, share * np.float32(rng.uniform(0.2, 0.34)))
    return (share > 0.35) & (gained > 0.25)


def _bronchi(scene: Scene, rng: np.random.Generator, side: int, centre: NDArray[np.float64]) -> Array:
    """Return the air [H, W], in cm, of bronchi that branch from the hilum through `centre`."""
    canvas = scene.canvas()
    hilum = scene.body.hilum(side)
    way = centre - hilum
    for _ in range(4):
        turn = rng.normal(0, 0.35, 3) * np.linalg.norm(way)
        middle = hilum + 0.55 * way + 0.35 * turn
        end = hilum + 1.25 * way + turn
        scene.stroke(canvas, np.stack([hilum + 0.2 * way, middle, end]), rng.uniform(0.17, 0.26), 220)
        for _ in range(2):
            fork = middle + (end - middle) * 0.5
            scene.stroke(
                canvas, np.stack([fork, fork + 0.5 * way + rng.normal(0, 0.4, 3) * np.linalg.norm(way)]), 0.14, 170
            )
    return scene.blur(scene.shrink(canvas, 1.3), 0.07)


def _consolidation(scene: Scene, rng: np.random.Generator) -> Mask:
    """One homogeneous segment or lobe that ends straight at a fissure."""
    body = scene.body
    side = int(rng.random() < 0.45)
    upper = rng.random() < 0.45
    centre = _place(body, rng, side, *((0.2, 0.4) if upper else (0.62, 0.9)))
    share = _blob(scene, centre, rng.uniform(3.6, 6.0), rng, 0.13, 0.9)
    fissure = 0.5 * body.top(side) + rng.normal(0, 0.6) + rng.normal(0, 0.06) * scene.u
    share = share * (ease((fissure - scene.v) / 0.35 + 0.5) if upper else ease((scene.v - fissure) / 0.35 + 0.5))
    share = share * np.float32(rng.uniform(0.42, 0.78))
    gained = _fill(scene, side, share)
    scene.gas += 0.5 * _bronchi(scene, rng, side, centre) * ease(gained / 3)
    scene.vessels = scene.vessels * (1 - 0.8 * share)
    return (share > 0.2) & (gained > 0.4)


def _pneumonia(scene: Scene, rng: np.random.Generator) -> Mask:
    """Patches in one or both lungs, fluffy, confluent, with air bronchograms."""
    body = scene.body
    mask = np.zeros(scene.soft.shape, bool)
    first = int(rng.random() < 0.45)
    patches = cloud(rng, scene.size, max(4, int(scene.size * scene.cm / 3.2)), 4, 0.65)
    for n in range(int(rng.integers(2, 5))):
        side = first if n < 2 or rng.random() < 0.5 else 1 - first
        centre = _place(body, rng, side, 0.35, 0.95)
        blob = _blob(scene, centre, rng.uniform(2.4, 4.6), rng, 0.26, 1.2)
        share = blob * (0.3 + 0.7 * ease(patches / 2.6 + 0.55)) * np.float32(rng.uniform(0.45, 0.8))
        gained = _fill(scene, side, share)
        scene.gas += 1.1 * _bronchi(scene, rng, side, centre) * ease(gained / 2.5)
        mask |= (blob > 0.3) & (gained > 0.35)
        scene.vessels = scene.vessels * (1 - 0.5 * share)
    return mask


def _lesions(scene: Scene, rng: np.random.Generator) -> Mask:
    mask = np.zeros(scene.soft.shape, bool)
    kind = rng.random()
    count, small, large = (
        (1, 1.9, 3.2) if kind < 0.35 else (1, 0.9, 1.6) if kind < 0.65 else (int(rng.integers(3, 8)), 0.6, 1.4)
    )
    for _ in range(count):
        side = int(rng.random() < 0.5)
        r = rng.uniform(small, large)
        centre = _place(scene.body, rng, side, 0.15, 0.92)
        ball = scene.solid(Solid(tuple(centre), (r * rng.uniform(0.88, 1.12), r, r), rng.uniform(0, 3)))
        if r > 1.5:
            ball = ball * np.clip(1 + 0.18 * cloud(rng, scene.size, int(scene.size * scene.cm / 1.5), 2), 0.5, 1.4)
        gained = np.minimum(ball, scene.lung[side] * 0.97)
        scene.lung[side] = scene.lung[side] - gained
        mask |= (ball > 0.5 * r) & (gained > 0.1)
        scene.soft += np.asarray((0.15 if r > 1.5 else 0.35) * gained, np.float32)
    return mask


def _atelectasis(body: Body) -> tuple[str, int, np.random.Generator]:
    rng = stream(body, "Atelectasis")
    side = int(rng.random() < 0.5)
    kind = "plates" if rng.random() < 0.5 else "upper" if rng.random() < 0.4 else "lower"
    return kind, side, rng


def _collapse(scene: Scene, _: np.random.Generator) -> Mask:
    """Plate-like bands over the diaphragm, or a lobe collapsed against mediastinum or apex."""
    body = scene.body
    kind, side, rng = _atelectasis(body)
    rng.random(4)  # past the draws of `reshape`
    sign = SIGN[side]
    if kind == "plates":
        canvas = scene.canvas()
        for n in range(int(rng.integers(2, 5))):
            own = side if n < 2 or rng.random() < 0.6 else 1 - side
            s = SIGN[own]
            y = body.top(own) - rng.uniform(0.8, 5.0)
            x = rng.uniform(4.0, 0.6 * body.width)
            length = rng.uniform(3.5, 6.5)
            slope = rng.normal(-0.1, 0.25)
            u = np.linspace(0, 1, 8)
            line = np.stack(
                [
                    s * (x + length * u),
                    y + slope * length * u - 0.5 * np.sin(np.pi * u),
                    np.linspace(1, -1, 8) * length / 2,
                ],
                1,
            )
            scene.stroke(canvas, line, rng.uniform(0.22, 0.45), rng.uniform(150, 250))
        band = scene.blur(scene.shrink(canvas, 1.0), 0.12)
        gained = np.zeros_like(band)
        for own in range(2):
            gained += _fill(scene, own, band * 0.45)
        return (band > 0.2) & (gained > 0.15)
    field = scene.whole[side] > 1.0
    if scene.frontal:
        x = sign * scene.u
        if kind == "upper":
            edge = 0.22 * body.height + 0.35 * (6 - x) + 0.03 * (x - 6) ** 2 + rng.normal(0, 0.4)
            share = ease((edge - scene.v) / 0.9 + 0.5)
        else:
            edge = 2.0 + (scene.v - body.hilum(side)[1]) * rng.uniform(0.42, 0.6)
            share = ease((edge - x) / 0.9 + 0.5) * ease((scene.v - body.hilum(side)[1] + 1) / 2)
    elif kind == "upper":
        share = ease((0.2 * body.height - scene.v + 0.25 * -scene.u) / 1.0)
    else:
        share = ease((scene.v - body.hilum(side)[1] + 1.3 * (-scene.u + 2.0)) / 1.0) * ease((-1.5 + scene.u) / 1.5)
    share = share * np.float32(rng.uniform(0.6, 0.85))
    gained = _fill(scene, side, share) + (scene.heart > 2) * 0.25 * share * (kind == "lower")
    scene.soft += np.asarray((scene.heart > 2) * 0.9 * share * field, np.float32)
    scene.vessels = scene.vessels * (1 - 0.8 * share)
    return (share > 0.3) & field & ((gained > 0.15) | (scene.whole[side] > 3))


def _effusion(scene: Scene, rng: np.random.Generator) -> Mask:
    """Free fluid: it hides the angle and climbs the wall as a meniscus."""
    body = scene.body
    mask = np.zeros(scene.soft.shape, bool)
    first = int(rng.random() < 0.5)
    sides = (first, 1 - first) if rng.random() < 0.3 else (first,)
    for side in sides:
        amount = rng.beta(1.3, 1.8)
        level = body.top(side) + 0.55 * body.dome_rise - amount * 0.5 * body.height
        climb = rng.uniform(2.2, 4.0) + 2 * amount
        wall = np.abs(scene.wall[side]) if not scene.frontal else np.maximum(scene.wall[side], -0.25 * scene.wall[side])
        surface = level + 1.2 - climb * wall**3
        share = ease((scene.v - surface) / (1.6 + 0.8 * amount))
        field = scene.whole[side] > 0.05
        before = scene.lung[side]
        gained = _fill(scene, side, share)
        scene.soft += np.asarray(0.8 * share * field * ease(before / 2), np.float32)
        if scene.view == "AP":
            gained += _fill(scene, side, np.full_like(share, 0.1 + 0.12 * amount))
        scene.vessels = scene.vessels * (1 - 0.9 * share * field)
        mask |= (share > 0.3) & field & (scene.v < body.top(side) + 1.0 * body.dome_rise)
    return mask


def _pneumothorax(body: Body) -> tuple[int, float, np.random.Generator]:
    rng = stream(body, "Pneumothorax")
    return int(rng.random() < 0.48), float(rng.beta(1.4, 1.8)), rng


def _free_air(scene: Scene, _: np.random.Generator) -> Mask:
    """Air between lung and wall: no vessels in it, and the visceral pleura as a thin line."""
    body = scene.body
    side, size, rng = _pneumothorax(body)
    rng.random(2)  # past the draws of `reshape`
    sign = SIGN[side]
    cap = 1.6 + size * rng.uniform(4.0, 7.0)
    gap = 0.9 + size * rng.uniform(3.0, 5.0)
    low = np.maximum(scene.v - cap, 0)
    narrow = gap * (1 - 0.75 * np.clip(low / (0.75 * body.height), 0, 1))
    if scene.frontal:
        x = sign * scene.u
        wave = 0.12 * np.sin(scene.v * 0.9 + rng.uniform(0, 6))
        distance = np.minimum(body.outer(low) - narrow - wave - x, x - body.medial(low))
    else:
        vault = np.sqrt(1 - (1 - np.minimum(low / 9, 1)) ** 2)
        distance = vault * body.half_depth(low + 4) - 0.4 * narrow - np.abs(scene.u)
        distance = np.minimum(distance, (1 - np.abs(scene.wall[side])) * body.half_depth(scene.v) - 0.3 * narrow)
    distance = np.where(scene.v < cap, -1, distance)
    field = scene.whole[side] > 0.05
    outside = ease(-distance / 0.12 + 0.5) * field
    freed = scene.lung[side] * outside * np.float32(0.75)
    scene.lung[side] = scene.lung[side] - freed
    scene.gas += np.asarray(freed, np.float32)
    scene.density[side] = scene.density[side] * np.float32(1 + 0.55 * size)
    edge = np.exp(-((distance / 0.09) ** 2)) * field * (scene.lung[side] + freed > 1)
    scene.soft += np.asarray(0.75 * edge, np.float32)
    scene.vessels = scene.vessels * (1 - outside)
    scene.texture = scene.texture * (1 - outside)
    return (outside > 0.5) & (scene.whole[side] > 0.3) & (freed > 0.2)


def _thick_pleura(scene: Scene, rng: np.random.Generator) -> Mask:
    """A peel along the wall, an apical cap, or calcified plaques."""
    body = scene.body
    mask = np.zeros(scene.soft.shape, bool)
    kind = rng.random()
    first = int(rng.random() < 0.5)
    for side in (first, 1 - first) if rng.random() < 0.4 else (first,):
        field = scene.whole[side] > 0.02
        if kind < 0.6 or not scene.frontal:
            thick = rng.uniform(0.7, 1.5)
            if scene.frontal:
                half = (body.outer(scene.v) - body.medial(scene.v)) / 2
                depth = (1 - scene.wall[side]) * half
            else:
                depth = (1 - np.abs(scene.wall[side])) * body.half_depth(scene.v)
            lumps = cloud(rng, scene.size, int(scene.size * scene.cm / 4), 2)
            low, high = sorted(rng.uniform(0.1, 1.0, 2))
            if high - low < 0.4:
                low, high = 0.35, 0.95
            along = ease((scene.v - low * body.top(side)) / 2) * ease((high * body.top(side) + 2 - scene.v) / 2)
            peel = ease((thick * along * (1 + 0.25 * lumps) - depth) / 0.4 + 0.5) * along * field
            _fill(scene, side, peel * 0.9)
            scene.soft += np.asarray(1.3 * peel, np.float32)
            mask |= (peel > 0.4) & field
        else:
            for _ in range(int(rng.integers(3, 7))):
                centre = _place(body, rng, side, 0.35, 0.98)
                blob = _blob(scene, centre, rng.uniform(0.7, 1.6), rng, 0.35) * field
                scene.bone += np.asarray(blob * np.float32(rng.uniform(0.7, 1.3)), np.float32)
                mask |= blob > 0.3
        if kind < 0.25 and scene.frontal:
            x = SIGN[side] * scene.u - body.apex_x
            cap = ease((1.7 + 0.05 * x * x + 0.2 * np.sin(2 * scene.u) - scene.v) / 0.4 + 0.5) * field
            _fill(scene, side, cap * 0.85)
            scene.soft += np.asarray(0.6 * cap, np.float32)
            mask |= cap > 0.4
    return mask


def _fracture(scene: Scene, rng: np.random.Generator) -> Mask:
    return scene.broken


def breaks(body: Body) -> Breaks:
    """Return which bones break: (bone, index, side) to (place along it 0 to 1, displacement in cm, callus in cm)."""
    rng = stream(body, "Fracture")
    side = int(rng.random() < 0.5)
    out: Breaks = {}
    if rng.random() < 0.5:
        shift = np.array([SIGN[side] * rng.uniform(-0.8, 0.2), rng.uniform(1.2, 2.3), 0.0])
        out["clavicle", 0, side] = (rng.uniform(0.4, 0.62), shift, 0.0)
    else:
        first, at = int(rng.integers(2, 6)), rng.uniform(0.22, 0.6)
        swelling = rng.uniform(0.25, 0.6) if rng.random() < 0.6 else 0.0
        for index in range(first, first + int(rng.integers(3, 6))):
            shift = np.array([SIGN[side] * rng.uniform(-0.7, 0.1), rng.choice([-1, 1]) * rng.uniform(1.0, 1.8), 0.0])
            out["rib", index, side] = (float(np.clip(at + rng.normal(0, 0.03), 0.2, 0.66)), shift, swelling)
    return out
