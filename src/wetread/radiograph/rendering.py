"""Healthy anatomy into a scene: outline, mediastinum, skeleton, vessels, abdomen."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from wetread.radiograph.anatomy import SIGN, Array, Solid, clavicle, rib, vessel_tree
from wetread.radiograph.projection import SUPERSAMPLING, Points, Scene, capsule_path, cloud, ease, ellipsoid_path


def build(scene: Scene) -> None:
    """Fill a scene with healthy anatomy."""
    scene.body_path = _outline(scene)
    _mediastinum(scene)
    _skeleton(scene)
    _lung_vessels(scene)
    _abdomen(scene)


def _outline(scene: Scene) -> Array:
    """Return the path through neck, trunk, shoulders, arms and breasts, on half the grid as it is smooth."""
    body = scene.body
    u, v = scene.u[::2, ::2], scene.v[::2, ::2]
    layer = body.muscle + 0.8 * body.fat
    rows = np.clip(v, 0, body.height)
    deep = body.half_depth(np.maximum(rows, 4)) + 1.6 + 0.5 * body.fat
    fall = ease((v + 4.0) / 9.0)
    if scene.frontal:
        wide = (
            (body.width + layer)
            * (0.45 + 0.55 * fall)
            * (1 - 0.05 * ease((v - body.height * 0.55) / 12) * (body.fat < 2))
        )
        x = u / wide
        path = 2 * deep * np.sqrt(np.maximum(1 - x**4 * (0.5 + 0.5 * x**4), 0)) * (v > -6)
        neck = 2 * 5.2 * np.sqrt(np.maximum(1 - (u / (5.2 + 0.35 * body.fat)) ** 2, 0)) * (1 - ease((v - 1) / 5))
        path = np.maximum(path * (0.35 + 0.65 * fall), neck)
        for sign in SIGN:
            shoulder = (sign * (body.width + 2.6), 2.6)
            elbow = (shoulder[0] + sign * 24 * np.sin(body.arms), 2.6 + 24 * np.cos(body.arms))
            thick = 4.0 + 0.6 * layer
            path = np.maximum(path, 0.95 * capsule_path(u, v, shoulder, elbow, (thick + 0.8, thick - 0.6)))
            path = np.maximum(path, capsule_path(u, v, (sign * 3, -2.0), shoulder, (5.6, thick + 1.6)))
    else:
        z = -u + 0.6
        path = 2 * (body.width + layer) * np.sqrt(np.maximum(1 - (z / (deep + 1.2)) ** 4, 0)) * (0.4 + 0.6 * fall)
        neck = 10.4 * np.sqrt(np.maximum(1 - ((z - 0.3) / 6.2) ** 2, 0)) * (1 - ease((v - 1) / 5))
        path = np.maximum(path, neck)
        arm = capsule_path(u, v, (-2, 3), (-14, -9), (4.6 + 0.4 * body.fat, 4.2))
        path = path + 0.45 * arm
    if body.breast:
        low = body.height * 0.66
        r = body.breast
        for sign in SIGN:
            mound = scene.plane(np.array([[sign * 0.56 * body.width, low, body.depth + 2]]))[0]
            if scene.frontal:
                fall_off = ease((v - mound[1] + r) / (1.7 * r))
                mound_path = ellipsoid_path(u, v, (mound[0], mound[1]), (r * 1.1, r * 0.95, r * 0.8))
                path = path + 0.45 * mound_path * fall_off
            else:
                path = path + 0.22 * ellipsoid_path(u, v, (mound[0] + 0.35 * r, mound[1]), (r * 0.85, r * 0.95, r))
    path = cv2.GaussianBlur(np.asarray(path, np.float32), (0, 0), 0.35 / scene.cm)
    return np.asarray(cv2.resize(path, (scene.size, scene.size), interpolation=cv2.INTER_LINEAR), np.float32)


def _mediastinum(scene: Scene) -> None:
    body = scene.body
    k = scene.magnification
    hearts = [Solid(s.centre, (s.radii[0] * k, s.radii[1] * k, s.radii[2]), s.tilt) for s in body.heart_solids()]
    scene.heart = scene.union(hearts)
    scene.central = scene.union(body.great_vessels())
    solid = np.maximum(scene.heart, scene.central)
    if scene.frontal:
        spine = np.float32(2.6) * np.sqrt(np.maximum(1 - (scene.u / np.float32(2.7)) ** 2, 0))
    else:
        z = -scene.u
        spine = ease((3.0 - np.abs(z + body.depth * 0.75)) / 2.0)
    for side in range(2):
        # What the dome hides lies behind the heart, not in it.
        before = solid * ease(1 - scene.dome[side] / 2.5) if scene.frontal else 0.5 * solid
        scene.lung[side] = np.asarray(np.maximum(scene.lung[side] - before - spine, 0), np.float32)
    # airways
    canvas = scene.canvas()
    carina = np.array([0.3 + 0.6 * body.shift, 0.3 * body.height, -1.2])
    top = np.array([0.0, -6.0, 0.5])
    scene.carina, scene.trachea_top = carina, top
    scene.stroke(canvas, np.stack([top, carina]), 0.85, 200)
    for side, sign in enumerate(SIGN):
        hilum = body.hilum(side)
        scene.stroke(canvas, np.stack([carina, hilum + np.array([-sign * 0.6, 0.6, 0])]), 0.6, 150)
        scene.stroke(
            canvas,
            np.stack([hilum + np.array([-sign * 0.6, 0.6, 0]), hilum + np.array([sign * 0.8, 3.5, -1])]),
            0.4,
            90,
        )
    scene.gas += scene.blur(scene.shrink(canvas, 2.5), 0.18)


def _tubes(scene: Scene, canvas: NDArray[np.uint8], lines: list[Points], radius: float, value: float) -> None:
    """Fill bony tubes along lines [n, 3]: bright cortex, darker marrow, brighter where they run along the ray."""
    for count in sorted({len(line) for line in lines} - {0, 1}):
        batch = np.stack([line for line in lines if len(line) == count])
        pixels = scene.pixel(batch.reshape(-1, 3)).reshape(len(batch), count, 2)
        along = np.linalg.norm(np.diff(batch, axis=1), axis=2)
        way = np.diff(pixels, axis=1)
        slope = np.clip(along / np.maximum(np.linalg.norm(way, axis=2) * scene.cm, 1e-3), 1, 1.8)
        way = np.concatenate([way[:, :1], way[:, 1:] + way[:, :-1], way[:, -1:]], 1)
        normal = way[:, :, ::-1] * [-1, 1] / (np.linalg.norm(way, axis=2)[:, :, None] + 1e-6)
        for share, level in ((1.0, 1.0), (0.78, 0.55)):  # the whole, and the marrow
            edge = normal * (radius * share / scene.cm)
            rims = np.concatenate([pixels + edge, (pixels - edge)[:, ::-1]], 1)
            rims = np.round((rims * SUPERSAMPLING + 0.5) * 16).astype(np.int32)
            for start in range(0, count - 1, 3):
                stop = min(start + 4, count)
                parts = np.concatenate([rims[:, start:stop], rims[:, 2 * count - stop : 2 * count - start]], 1)
                shades = value * level * slope[:, start : stop - 1].mean(1)
                for part, shade in zip(parts, shades.tolist(), strict=True):
                    cv2.fillPoly(canvas, [part], shade, cv2.LINE_8, 4)


def _skeleton(scene: Scene) -> None:
    body = scene.body
    back, front, upper = scene.canvas(), scene.canvas(), scene.canvas()
    rears, fores, clavicles = [], [], []
    for side in range(2):
        for index in range(12):
            line = rib(body, index, side)
            split = int(len(line) * 0.52)
            for piece, first in _pieces(scene, line, ("rib", index, side)):
                rears.append(piece[: max(split + 1 - first, 0)])
                fores.append(piece[max(split - first, 0) :])
        clavicles += [piece for piece, _ in _pieces(scene, clavicle(body, side), ("clavicle", 0, side))]
    _tubes(scene, back, rears, 0.58, 98)
    _tubes(scene, front, fores, 0.6, 88)
    _tubes(scene, upper, clavicles, 0.62, 120)
    ribs = scene.shrink(back, 2.25) + scene.shrink(front, 1.6)
    scene.bone += scene.blur(ribs, 0.045) * body.bone
    scene.bone += scene.blur(scene.shrink(upper, 2.9), 0.05) * body.bone
    scene.bone += _spine(scene) * body.bone
    if scene.frontal:
        _shoulders(scene)
    else:
        z = -scene.u
        sternum = ease((0.8 - np.abs(z - body.half_depth(np.maximum(scene.v, 4)) - 1.0)) / 0.5) * ease(
            (scene.v - 2.5) / 1.5
        )
        scene.bone += np.asarray(1.2 * body.bone * sternum * (1 - ease((scene.v - 0.72 * body.height) / 2)), np.float32)


def _pieces(scene: Scene, line: Points, name: tuple[str, int, int]) -> list[tuple[Points, int]]:
    """Return the pieces of a bone and where on `line` each starts: one piece, or two when it is broken."""
    if name not in scene.breaks:
        return [(line, 0)]
    place, shift, swelling = scene.breaks[name]
    at = int(np.clip(round(place * len(line)), 3, len(line) - 4))
    first, second = line[: at - 1], line[at:] + shift * np.linspace(1, 0, len(line) - at)[:, None]
    ends = np.stack([first[-1], second[0]])
    if swelling > 0:
        callus = scene.canvas()
        scene.stroke(callus, ends, 0.5 + swelling, 220)
        scene.bone += scene.blur(scene.shrink(callus, 1.25), 0.12)
    region = scene.canvas()
    scene.stroke(region, ends, 1.3, 255)
    scene.soft += scene.blur(scene.shrink(region, 0.9 if swelling else 1.6), 0.35)  # blood around the ends
    scene.broken |= scene.shrink(region, 1.0) > 0.4
    return [(first, 0), (second, at)]


def _spine(scene: Scene) -> Array:
    body, v = scene.body, scene.v
    pitch = body.height * 0.093
    phase = (v + 1.6) / pitch
    disc = np.exp(-(((phase - np.round(phase)) * pitch / 0.3) ** 2))
    if scene.frontal:
        x = np.abs(scene.u - scene.yaw * body.depth * 0.7)
        column = ease((2.05 - x + 0.25 * np.cos(2 * np.pi * phase)) / 0.4)
        bone = column * (1.25 - 0.55 * disc)
        near = (phase - np.floor(phase) - 0.62) * pitch
        bone = bone + 0.8 * np.exp(-(((x - 1.45) / 0.35) ** 2) - (near / 0.5) ** 2)
        bone = bone + 0.6 * np.exp(-((x / 0.3) ** 2) - ((near - 0.4) / 0.7) ** 2)
        return np.asarray(bone * 0.45, np.float32)
    z = -scene.u
    bend = -body.depth * 0.78 - 0.9 * np.sin(np.clip(v / body.height, -0.2, 1.3) * np.pi) + 1.2
    column = ease((1.6 - np.abs(z - bend)) / 0.35)
    tail = ease((0.9 - np.abs(z - bend + 3.4)) / 0.6) * (0.5 + 0.5 * np.cos(2 * np.pi * phase))
    return np.asarray(column * (1.2 - 0.7 * disc) + 0.5 * tail, np.float32)


def _shoulders(scene: Scene) -> None:
    body = scene.body
    blade, edge = scene.canvas(), scene.canvas()
    turned = 2.2 * body.scapula - (1.5 if scene.view == "AP" else 0.0)
    for sign in SIGN:
        x0 = body.width + 1.5 + turned
        corner = np.array(
            [[x0 - 4.5, 1.5], [x0 - 3.6, 8.0], [x0 - 2.0, 14.0], [x0 - 0.6, 9.5], [x0 + 1.8, 4.5], [x0 + 0.5, 2.6]]
        )
        points = np.stack([sign * corner[:, 0], corner[:, 1], np.full(6, -7.0)], 1)
        pixels = scene.pixel(points)
        fixed = np.round((pixels * SUPERSAMPLING + 0.5) * 16).astype(np.int32)
        cv2.fillPoly(blade, [fixed], 60, cv2.LINE_AA, 4)
        scene.stroke(edge, points[2:5], 0.35, 120)
        ridge = np.array([[sign * (x0 - 4.4), 4.5, -8], [sign * (x0 - 1), 2.0, -8], [sign * (x0 + 3.2), 0.2, -7]])
        scene.stroke(edge, ridge, 0.5, 90)
        head = np.array([sign * (x0 + 3.6), 2.8, -5.0])
        scene.bone += 0.26 * scene.solid(Solid(tuple(head), (2.3, 2.4, 2.3))) * body.bone
        end = head + 24 * np.array([sign * np.sin(body.arms), np.cos(body.arms), 0])
        joint, elbow = scene.plane(head)[0], scene.plane(end)[0]
        inner = int(np.clip(scene.pixel(head)[0, 0] - sign * 3 / scene.cm, 0, scene.size))
        box = (slice(None), slice(inner, None) if sign > 0 else slice(0, inner))
        shaft = capsule_path(scene.u[box], scene.v[box], joint, elbow, (1.5, 1.1))
        marrow = capsule_path(scene.u[box], scene.v[box], joint, elbow, (0.9, 0.6))
        scene.bone[box] += (0.5 * shaft - 0.45 * marrow) * np.float32(body.bone)
    scene.bone += (
        scene.blur(scene.shrink(blade, 0.9), 0.25) * body.bone + scene.blur(scene.shrink(edge, 1.2), 0.2) * body.bone
    )


def _lung_vessels(scene: Scene) -> None:
    body = scene.body
    canvas = scene.canvas()
    rng = np.random.default_rng([body.seed, 4])
    segments, radii = vessel_tree(body, rng)
    ends = scene.pixel(segments.reshape(-1, 3)).reshape(-1, 2, 2)
    fixed = np.round((ends * SUPERSAMPLING + 0.5) * 16).astype(np.int32)
    # Thin ones first, so that the thick ones cross over them; a few dozen calls instead of thousands.
    for group in np.array_split(np.argsort(radii, kind="stable"), 48):
        radius = float(radii[group].mean())
        wide = 2 * radius / scene.cm * SUPERSAMPLING
        thick = max(1, round(wide))
        value = min(radius / 0.4, 1.0) * 255 * min(1.0, wide / thick)
        cv2.polylines(canvas, list(fixed[group]), False, value, thick, cv2.LINE_8, 4)
    tree = scene.shrink(canvas, 2.3)
    scene.vessels = np.asarray(cv2.GaussianBlur(tree, (0, 0), max(0.03 / scene.cm, 0.2)), np.float32)
    hila = np.zeros_like(tree)
    for side, sign in enumerate(SIGN):
        x, y, z = body.hilum(side)
        hila += 0.42 * scene.solid(Solid((x + sign * 0.1, y, z), (1.1, 2.0, 1.6), -sign * 0.35))
        hila += 0.5 * scene.solid(Solid((x + sign * 0.7, y + 2.2, z - 0.6), (0.75, 2.6, 1.4), -sign * 0.3))
    scene.vessels = scene.vessels + scene.blur(hila, 0.15)
    scene.texture = cloud(rng, scene.size, round(scene.size * scene.cm / 0.8), 3, 0.9)


def _abdomen(scene: Scene) -> None:
    body = scene.body
    rng = np.random.default_rng([body.seed, 5, body.study])
    if rng.random() < 0.75:
        wide = rng.uniform(1.6, 3.6)
        y = body.top(1) + rng.uniform(1.6, 2.4)
        bubble = scene.solid(
            Solid((rng.uniform(4.5, 7), y + 0.6, 1.0), (wide, rng.uniform(1.0, 1.7), wide * 0.8), rng.normal(0, 0.2))
        )
        scene.gas += bubble * ease((scene.v - y + 3) / 2)
    gas = cloud(rng, scene.size, 7, 2)
    under = ease((scene.v - body.top(1) - 4) / 4) * ease((8 + scene.u) / 5 if scene.frontal else np.ones_like(scene.u))
    scene.gas += np.asarray(np.maximum(gas - 1.3, 0) * 1.6 * under * rng.uniform(0, 1), np.float32)
