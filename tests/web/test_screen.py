"""The viewer's lens, full screen and opacity by key; charts in another theme; one and two 4K screens."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import browser
import cv2
import numpy as np
import pytest
from browser import Server, signed_in, until, wait_for, watched
from web.test_viewer import TWELVE, WINDOW, expected, opened, seen, send, shows

from wetread.radiograph import phantom

pytestmark = browser.needed


@pytest.fixture(scope="module")
def session(server: Server, chromium: Any) -> Iterator[Any]:
    with signed_in(chromium, server, 1200, 700) as context:
        yield context


@pytest.fixture(scope="module")
def page(server: Server, session: Any) -> Iterator[Any]:
    with watched(session, server.url) as page:
        yield page


@pytest.fixture(scope="module")
def film(server: Server) -> tuple[str, np.ndarray]:
    """Send a film of patches; give its study and their greys."""
    study, content = send(server, TWELVE, **WINDOW)
    return study, expected(content)


def canvas(page: Any, selector: str) -> np.ndarray:
    """Return what is on a canvas, uint8 [H, W, 4]."""
    address = page.evaluate("s => document.querySelector(s).toDataURL('image/png')", selector)
    content = np.frombuffer(base64.b64decode(address.split(",")[1]), np.uint8)
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_UNCHANGED))


def test_the_lens_shows_the_values_under_the_pointer_larger(server: Server, page: Any, film: Any) -> None:
    study, greys = film
    opened(page, server, study)
    box = page.locator(".viewport").bounding_box()
    side = min(box["width"], box["height"])
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    assert page.locator("canvas.lens").count() == 0
    page.keyboard.press("l")
    assert page.get_attribute('[data-action="viewer.magnifier"]', "aria-pressed") == "true"
    # In the third patch of the second row, 20 CSS px right of the second: 50 px in a lens that magnifies 2.5 times.
    x, y = left + side / 2 + 20, top + side * 0.375
    page.mouse.move(x, y)
    page.wait_for_selector("canvas.lens")
    row = canvas(page, "canvas.lens")[120, :, 0].astype(float)
    assert abs(row[120] - greys[1, 2]) <= 1
    assert abs(row[120 - 60] - greys[1, 1]) <= 1
    assert abs(int(np.argmax(row > greys[1, 1:3].mean())) - (120 - 50)) <= 3
    page.keyboard.press("i")
    page.mouse.move(x, y + 1)
    wait_for(page, lambda: abs(canvas(page, "canvas.lens")[120, 120, 0] - (255 - greys[1, 2])) <= 1, "inverted, too")
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] - 30)
    page.wait_for_selector("canvas.lens", state="detached")
    page.keyboard.press("l")
    page.mouse.move(x, y)
    assert page.locator("canvas.lens").count() == 0
    assert page.get_attribute('[data-action="viewer.magnifier"]', "aria-pressed") == "false"


def test_full_screen_is_a_key_and_keeps_the_picture(server: Server, page: Any, film: Any) -> None:
    study, greys = film
    opened(page, server, study)
    page.keyboard.press("i")
    for on in (True, False):
        page.keyboard.press("Shift+F")
        until(page, f"(document.fullscreenElement !== null) === {str(on).lower()}")
        until(
            page,
            f"""document.querySelector('[data-action="viewer.full-screen"]').ariaPressed === '{str(on).lower()}'""",
        )
        shows(page, 255 - greys, "the picture as it was")
        assert page.locator("header.identity").is_visible()


def test_keys_make_the_heatmap_stronger_and_weaker_within_its_bounds(server: Server, page: Any) -> None:
    study = server.send(phantom.dicom(phantom.make(1, size=160, findings=["Pneumothorax"])), "1.dcm")
    opened(page, server, study)
    page.keyboard.press("h")
    page.wait_for_selector("#legend:not([hidden])")

    def strongest() -> float:
        return float(canvas(page, "#overlay")[..., 3].max()) / 255

    wait_for(page, lambda: abs(strongest() - 0.6) < 0.02, "60 % at first")
    for keys, wanted in ((["o"], 70), (["o"] * 4, 100), (["Shift+O"] * 3, 70), (["Shift+O"] * 9, 0), (["o"], 10)):
        for key in keys:
            page.keyboard.press(key)
        assert page.input_value("#opacity") == str(wanted)
        wait_for(page, lambda w=wanted: abs(strongest() - w / 100) < 0.02, f"{wanted} %")


BRIGHTEST = """[...document.querySelectorAll('figure canvas')].map(canvas => {
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let most = 0;
    for (let n = 0; n < data.length; n += 4) if (data[n + 3] > 240) most = Math.max(most, data[n + 1]);
    return most })"""


def test_charts_follow_the_theme_without_a_reload(server: Server, session: Any) -> None:
    """Words on a chart are nearly white on the dark ground; on the light one nothing is brighter than its grid."""
    with watched(session, server.url) as charts, watched(session, server.url) as settings:

        def dark(wanted: bool) -> bool:
            found = charts.evaluate(BRIGHTEST)
            return bool(found) and all((most > 212) is wanted for most in found)

        def choose(theme: str) -> None:
            settings.goto(f"{server.url}/settings")
            settings.get_by_label(theme, exact=True).check()
            with settings.expect_navigation():
                settings.get_by_role("button", name="Keep").click()

        charts.emulate_media(color_scheme="dark")
        charts.goto(f"{server.url}/operations")
        wait_for(charts, lambda: dark(True), "drawn in the dark")
        charts.evaluate("window.same = true")
        try:
            choose("light")
            wait_for(charts, lambda: dark(False), "chosen light")
            choose("as the system")
            wait_for(charts, lambda: dark(True), "as dark as the system")
            charts.emulate_media(color_scheme="light")
            wait_for(charts, lambda: dark(False), "as light as the system")
        finally:
            choose("dark")
        wait_for(charts, lambda: dark(True), "dark again")
        assert charts.evaluate("window.same") is True


@pytest.mark.parametrize(("width", "height", "ratio"), [(7680, 2160, 1), (1920, 1080, 2)])
def test_pictures_use_all_of_a_large_screen(
    server: Server, session: Any, film: Any, width: int, height: int, ratio: int
) -> None:
    study, greys = film
    with watched(session, server.url) as page:
        devtools = session.new_cdp_session(page)
        screen = {"width": width, "height": height, "deviceScaleFactor": ratio, "mobile": False}
        devtools.send("Emulation.setDeviceMetricsOverride", screen)
        opened(page, server, study)
        box = page.locator(".viewport").bounding_box()
        assert box["width"] > 0.6 * width
        assert box["height"] > 0.75 * height
        wait_for(page, lambda: np.abs(seen(page) - greys).max() <= 1, "the whole picture, sharp")
        size = page.evaluate("(({height, width}) => [height, width])(document.querySelector('.viewport canvas'))")
        assert size == [round(ratio * box["height"]), round(ratio * box["width"])]
        # Nothing holds more dots than the screen has: no canvas grows with another.
        dots = page.evaluate("[...document.querySelectorAll('canvas')].map(c => c.width * c.height)")
        assert max(dots) <= ratio**2 * box["width"] * box["height"] + 10_000
        assert sum(dots) <= 1.1 * max(dots)
