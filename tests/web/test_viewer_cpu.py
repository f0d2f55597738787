"""The viewer without WebGL: window, polarity, place, heatmap and length as `test_viewer` asks for them, by the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import browser
import numpy as np
import pytest
from browser import Server, signed_in, wait_for, watched
from web.test_viewer import (
    SIDE,
    TURNS,
    TWELVE,
    WINDOW,
    TestPlace,  # noqa: F401 (its tests run here, too)
    expected,
    opened,
    picture,
    send,
)
from web.test_viewer import (
    TestGrey as Grey,
)
from web.test_viewer import (
    TestPanes as Panes,
)

pytestmark = browser.needed


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    with browser.chromium("--disable-3d-apis") as running:
        yield running


@pytest.fixture(scope="module")
def session(server: Server, running: Any) -> Iterator[Any]:
    with signed_in(running, server, 1200, 700) as context:
        yield context


@pytest.fixture(scope="module")
def page(server: Server, session: Any) -> Iterator[Any]:
    with watched(session, server.url) as page:
        assert page.evaluate("document.createElement('canvas').getContext('webgl2')") is None
        yield page


@pytest.mark.parametrize("name", ["window, MONOCHROME1", "16 bits signed", "table", "8 bits"])
def test_grey(server: Server, page: Any, name: str) -> None:
    Grey().test_it_is_pydicoms_first_and_after_reset_and_its_negative_inverted(server, page, name)


def test_length(server: Server, page: Any) -> None:
    Panes().test_lengths_are_told_in_what_the_file_allows(server, page)


def test_pixels_that_are_no_squares_on_a_fine_screen(server: Server, session: Any) -> None:
    """Twice as wide as high, on a screen with two dots to a CSS pixel, whole and turned."""
    study, content = send(server, TWELVE, **WINDOW, PixelSpacing=[0.2, 0.4])
    with watched(session, server.url) as page:
        devtools = session.new_cdp_session(page)
        screen = {"width": 1200, "height": 700, "deviceScaleFactor": 2, "mobile": False}
        devtools.send("Emulation.setDeviceMetricsOverride", screen)
        opened(page, server, study)
        wanted = expected(content)
        for key, shape in (("", (1, 2)), (".", (2, 1)), ("s", (2, 1))):
            if key:
                page.keyboard.press(key)
                wanted = TURNS[key](wanted)
            wait_for(page, lambda w=wanted, s=shape: np.abs(middles(page, s) - w).max() <= 1, f"after {key!r}")


def middles(page: Any, shape: tuple[int, int]) -> np.ndarray:
    """Return the grey in the middle of each patch of a picture of this shape, whole in its pane, float [4, 4]."""
    shown = picture(page)
    box = page.locator(".viewport").bounding_box()
    assert shown.shape == (round(2 * box["height"]), round(2 * box["width"]))
    scale = min(shown.shape[0] / shape[0], shown.shape[1] / shape[1])
    rows, columns = ((shown.shape[i] + ((np.arange(SIDE) + 0.5) / SIDE * 2 - 1) * scale * shape[i]) / 2 for i in (0, 1))
    found: np.ndarray = shown[np.ix_(rows.astype(int), columns.astype(int))]
    return found
