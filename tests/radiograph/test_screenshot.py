from __future__ import annotations

import cv2
import films
import numpy as np
import pytest

from wetread.radiograph import phantom
from wetread.radiograph.read import Radiograph
from wetread.radiograph.screenshot import MANY, Text, text

FILM = phantom.make(3).radiograph.pixels


def test_a_film_with_its_marker_has_hardly_any_text() -> None:
    for seed in range(6):
        assert text(phantom.make(seed, size=512).radiograph).blocks < MANY / 2


@pytest.mark.parametrize(("ground", "ink"), [(200, 20), (30, 235), (255, 0)])
def test_a_viewer_has_lines_of_text_on_panels(ground: int, ink: int) -> None:
    found = text(Radiograph(films.viewer(FILM, ground=ground, ink=ink)))
    assert found.on_panels >= MANY
    assert found.blocks >= found.on_panels


def test_text_on_black_is_not_on_a_panel() -> None:
    found = text(Radiograph(films.viewer(FILM, ground=0, ink=255)))
    assert found.blocks >= MANY
    assert found.on_panels < MANY


def test_sixteen_bits_count_as_eight() -> None:
    screen = films.viewer(FILM)
    assert text(Radiograph(screen.astype(np.uint16) * 257, 16)) == text(Radiograph(screen))


def test_a_lone_word_and_noise_are_no_lines() -> None:
    word = np.zeros((200, 200), np.uint8)
    cv2.putText(word, "PA", (20, 40), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1)
    assert text(Radiograph(word)) == Text(0, 0)
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), dtype=np.uint8)
    assert text(Radiograph(noise)) == Text(0, 0)


@pytest.mark.parametrize("shape", [(1, 1), (15, 400), (16, 16), (17, 33)])
def test_any_size_is_looked_at(shape: tuple[int, int]) -> None:
    assert text(Radiograph(np.zeros(shape, np.uint8))) == Text(0, 0)
