"""Pictures of screens: a film in a viewer's window, between menus and lists."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]

FONTS = sorted(Path(matplotlib.get_data_path()).glob("fonts/ttf/DejaVuSans*.ttf"))
WORDS = [
    "Patient",
    "Study",
    "W/L",
    "Zoom",
    "Invert",
    "CHEST",
    "Series",
    "1/1",
    "File",
    "Edit",
    "View",
    "Tools",
    "Window",
    "Help",
    "Accession",
    "2024-05-12",
    "Name",
    "1024x1024",
    "kV",
    "mAs",
    "Report",
    "comparison",
    "Findings",
    "Worklist",
    "Unread",
    "Prior",
    "Layout",
    "Pan",
    "Measure",
]


def screen(film: Pixels, seed: int) -> Pixels:
    """Return a grey picture of a screen, 1024×768 to 1920×1080 pixels, that shows `film`; dark, grey or light."""
    rng = np.random.default_rng(seed)
    width, height = ((1280, 800), (1920, 1080), (1024, 768), (1600, 1200))[rng.integers(4)]
    ground = int(rng.integers(*((12, 50), (90, 200), (225, 256))[rng.integers(3)]))
    ink = 235 if ground < 110 else 20
    picture = Image.new("L", (width, height), ground)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.truetype(str(FONTS[rng.integers(len(FONTS))]), int(rng.integers(11, 18)))
    top, bottom = int(rng.integers(24, 90)), int(rng.integers(0, 40))
    left = int(rng.choice([0, 0, rng.integers(60, 320)]))
    right = int(rng.choice([0, rng.integers(150, 400)]))
    if left == right == 0 and rng.random() < 0.5:
        right = int(rng.integers(150, 400))
    x = 8
    while x < width - 60:
        word = str(rng.choice(WORDS))
        draw.text((x, 4), word, font=font, fill=ink)
        x += int(draw.textlength(word, font=font)) + int(rng.integers(12, 40))
    for start, stop in ((0, left), (width - right, width)):
        if stop - start > 50:
            draw.rectangle((start, top, stop, height), fill=int(np.clip(ground + rng.integers(-12, 13), 0, 255)))
            y = top + 6
            while y < height - 20 and rng.random() < 0.97:
                draw.text((start + 6, y), " ".join(rng.choice(WORDS, 3))[: (stop - start) // 8], font=font, fill=ink)
                y += int(rng.integers(18, 30))
    room = (width - left - right, height - top - bottom)
    scale = min(room[0] / film.shape[1], room[1] / film.shape[0])
    shown = Image.fromarray(film)
    fitted = (int(film.shape[1] * scale), int(film.shape[0] * scale))
    shown = shown.resize(room if rng.random() < 0.3 else fitted)
    draw.rectangle((left, top, left + room[0], top + room[1]), fill=int(rng.choice([0, 0, ground])))
    picture.paste(shown, (left + (room[0] - shown.width) // 2, top + (room[1] - shown.height) // 2))
    for line in range(4):
        draw.text((left + 8, top + 6 + 18 * line), str(rng.choice(WORDS)), font=font, fill=240)
    return np.array(picture)
