"""Burned-in writing: what is found of rendered names, numbers and dates, and what passes of films without any.

    python benchmarks/burned_in.py [SHARED [FILMS [DRAWINGS [SEED]]]]

Writing is drawn by OpenCV's and by FreeType's fonts (the detector itself compares words with DejaVu Sans, so other
faces count here too), in three styles, of 10 to 48 pixels' height on films of 1,024 pixels, anywhere, on phantoms and,
where they are, on real films.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from wetread.radiograph import burned_in, phantom
from wetread.radiograph.read import read, to_8_bit

TEXTS = (
    "MUELLER^ANNA", "SMITH, JOHN", "O'Brien Mary", "NGUYEN THI LAN", "Garcia", "KOWALSKI", "Berg", "Jensen, Per",
    "PORTER", "ID 4711234", "000123456", "MRN: 88-1203", "ACC 20240117-3", "A1234567", "12.03.1961", "1961-04-05",
    "03/17/1958", "12 MAR 1961", "DOB 1.2.60", "17:42:09",
)  # fmt: skip
HEIGHTS = (10, 12, 16, 24, 32, 48)
STYLES = ("white", "black on white", "white with black edge")
FACES = ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono", "DejaVu Sans:bold", "simplex", "duplex", "complex")


def ink(text: str, face: str, height: int) -> np.ndarray:
    """Return writing of this height in pixels of its capitals, white on black, with a margin."""
    if not face.startswith("DejaVu"):
        fonts = {
            "simplex": cv2.FONT_HERSHEY_SIMPLEX,
            "duplex": cv2.FONT_HERSHEY_DUPLEX,
            "complex": cv2.FONT_HERSHEY_COMPLEX,
        }
        (_, tall), _ = cv2.getTextSize("H", fonts[face], 1.0, 1)
        scale, width = height / tall, max(1, round(height / 9))
        (wide, high), base = cv2.getTextSize(text, fonts[face], scale, width)
        picture = np.zeros((high + base + 8, wide + 8), np.uint8)
        cv2.putText(picture, text, (4, high + 4), fonts[face], scale, 255, width, cv2.LINE_AA)
        return picture
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    family, _, weight = face.partition(":")
    font = FT2Font(font_manager.findfont(font_manager.FontProperties(family=family, weight=weight or "normal")))
    font.set_size(height / 0.73, 72)
    font.set_text(text, 0.0)
    font.draw_glyphs_to_bitmap(antialiased=True)
    return cv2.copyMakeBorder(np.array(font.get_image(), np.uint8), 4, 4, 4, 4, cv2.BORDER_CONSTANT, value=0)


def draw(film: np.ndarray, text: str, face: str, height: int, style: str, rng: random.Random) -> np.ndarray:
    """Return the film with writing somewhere; white writing keeps off white ground, where nobody could read it."""
    letters = ink(text, face, height).astype(np.float32) / 255
    high, wide = letters.shape
    for _ in range(200):
        top, left = rng.randrange(max(1, film.shape[0] - high)), rng.randrange(max(1, film.shape[1] - wide))
        ground = film[top : top + high, left : left + wide]
        if ground.shape == letters.shape and (style != "white" or np.percentile(ground, 95) < 170):
            break
    else:
        return draw(film, text, face, height, "white with black edge", rng)
    out = film.astype(np.float32)
    place = out[top : top + high, left : left + wide]
    if style == "black on white":
        place[:] = 255 * (1 - letters)
    else:
        if style != "white":
            place *= 1 - cv2.dilate(letters, np.ones((3, 3)))
        place[:] = place * (1 - letters) + 255 * letters
    return np.rint(out).astype(np.uint8)


def films(shared: Path, count: int) -> dict[str, list[np.ndarray]]:
    """Return films by source."""
    made = {"phantoms": [to_8_bit(phantom.make(seed, size=1024).radiograph.pixels) for seed in range(count)]}
    rng = random.Random(0)
    for name in ("nih1000/images", "kermany224/train", "native/nih"):
        found = sorted(p for p in (shared / "data" / name).rglob("*") if p.suffix in (".png", ".jpeg", ".jpg"))
        if found:
            chosen = rng.sample(found, min(len(found), 3 * count))
            made[name] = [to_8_bit(read(path).pixels) for path in chosen]
    return made


def main(shared: Path, count: int = 25, drawings: int = 300, seed: int = 1) -> None:
    """Print both tables."""
    by_source = films(shared, count)
    print("| films without burned-in names | films | flagged | CPU ms a film |\n|---|---|---|---|")
    for name, pictures in by_source.items():
        start = time.process_time()
        flagged = sum(bool(burned_in.find(picture)) for picture in pictures)
        print(f"| {name} | {len(pictures)} | {flagged} | {(time.process_time() - start) / len(pictures) * 1000:.0f} |")
    grounds = [f for name in ("phantoms", "native/nih") for f in by_source.get(name, [])]
    clean = [ground for ground in grounds if not burned_in.find(ground)]
    clean = [cv2.resize(c, (1024, 1024), interpolation=cv2.INTER_AREA) for c in clean]
    seen, there = Counter[tuple[str, object]](), Counter[tuple[str, object]]()
    for number in range(drawings):
        rng = random.Random(seed * 100_000 + number)
        text, face, height = TEXTS[number % len(TEXTS)], rng.choice(FACES), rng.choice(HEIGHTS)
        style, film = rng.choice(STYLES), rng.choice(clean)
        found = bool(burned_in.find(draw(film, text, face, height, style, rng)))
        for key in (("all", ""), ("height", height), ("face", face), ("style", style), ("text", text)):
            there[key] += 1
            seen[key] += found
    print("\n| writing | of | found | share |\n|---|---|---|---|")
    for key in sorted(there, key=str):
        print(f"| {key[0]} {key[1]} | {there[key]} | {seen[key]} | {seen[key] / there[key]:.3f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "../shared"), *map(int, sys.argv[2:]))
