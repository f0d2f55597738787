"""A tablet: fingers on the picture by Chromium's own touch events, and a button for all that has a key."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import numpy as np
import pytest
from browser import Server, level, signed_in, until, wait_for, watched
from web.test_viewer import M1, TWELVE, WINDOW, expected, opened, picture, seen, send, shows

from wetread.radiograph import phantom

pytestmark = browser.needed
KEYS = Path(__file__).parents[2] / "frontend/src/keys.ts"
WIDE, HIGH = 1180, 820  # a tablet lying

Points = list[tuple[float, float]]


@pytest.fixture(scope="module")
def session(server: Server, chromium: Any) -> Iterator[Any]:
    with signed_in(chromium, server, WIDE, HIGH, has_touch=True, is_mobile=True) as context:
        yield context


class Hand:
    """Fingers on a page; times are told, so that a slow machine makes no slow finger."""

    def __init__(self, page: Any) -> None:
        self.page, self.now = page, time.time()
        self.devtools = page.context.new_cdp_session(page)

    def send(self, kind: str, points: Points, later: float = 0.02) -> None:
        self.now += later
        fingers = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(points)]
        self.devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers, "timestamp": self.now})

    def drag(self, start: Points, end: Points, steps: int = 8) -> None:
        """Put the fingers down one after the other, move them together, lift them."""
        for count in range(1, len(start) + 1):
            self.send("touchStart", start[:count])
        for step in range(1, steps + 1):
            part = step / steps
            moved = [(a + part * (c - a), b + part * (d - b)) for (a, b), (c, d) in zip(start, end, strict=True)]
            self.send("touchMove", moved)
        self.send("touchEnd", [])

    def tap(self, x: float, y: float, later: float = 0.1) -> None:
        self.send("touchStart", [(x, y)], later)
        self.send("touchEnd", [], 0.03)


def centre(page: Any) -> tuple[float, float]:
    box = page.locator(".viewport").bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


@pytest.fixture
def film(server: Server, session: Any) -> Iterator[tuple[Any, Hand, np.ndarray]]:
    """Open a MONOCHROME1 film of its own; give the page, a hand on it, and the greys that it must show."""
    study, content = send(server, TWELVE, **WINDOW, **M1)
    with watched(session, server.url) as page:
        opened(page, server, study)
        wanted = expected(content)
        shows(page, wanted, "first")
        yield page, Hand(page), wanted


def middle_of_mass(page: Any) -> tuple[float, float]:
    """Return where the picture is, by its bright part, as fractions of the canvas."""
    shown = picture(page)
    rows, columns = np.nonzero(shown > 8)
    return float(columns.mean() / shown.shape[1]), float(rows.mean() / shown.shape[0])


def test_one_finger_changes_the_window_and_only_that(film: tuple[Any, Hand, np.ndarray]) -> None:
    page, hand, _ = film
    before, (x, y) = level(page), centre(page)
    assert before == {"W": 2500, "L": 1900, "zoom": 1}
    hand.drag([(x, y)], [(x + 64, y + 32)])
    # 512 CSS px are the sender's window: a drag of 64 widens it by an eighth, one of 32 moves the level by a sixteenth.
    wait_for(page, lambda: abs(level(page)["W"] - 2500 * 9 / 8) <= 2, "the window as dragged")
    # Down is darker in what is drawn, where larger is brighter; this file counts the other way.
    assert abs(level(page)["L"] - (1900 - 2500 / 16)) <= 2
    assert level(page)["zoom"] == 1
    hand.drag([(x, y)], [(x + 4, y + 3)])  # a finger that trembles
    page.keyboard.press("i")  # comes after it, and is drawn
    wait_for(page, lambda: "INVERTED" in page.inner_text("#level"))
    assert abs(level(page)["W"] - 2500 * 9 / 8) <= 2


def test_two_fingers_zoom_and_move_and_leave_the_window(film: tuple[Any, Hand, np.ndarray]) -> None:
    page, hand, _ = film
    x, y = centre(page)
    hand.drag([(x - 50, y), (x + 50, y)], [(x - 100, y), (x + 100, y)])
    wait_for(page, lambda: abs(level(page)["zoom"] - 2) <= 0.02, "twice as large")
    hand.drag([(x - 100, y), (x + 100, y)], [(x - 25, y), (x + 25, y)])
    wait_for(page, lambda: abs(level(page)["zoom"] - 0.5) <= 0.01, "half as large")
    before, box = middle_of_mass(page), page.locator(".viewport").bounding_box()
    hand.drag([(x - 50, y), (x + 50, y)], [(x + 30, y - 40), (x + 130, y - 40)])
    wanted = before[0] + 80 / box["width"], before[1] - 40 / box["height"]
    wait_for(page, lambda: np.abs(np.subtract(middle_of_mass(page), wanted)).max() < 0.01, "the picture moved along")
    assert level(page) == {"W": 2500, "L": 1900, "zoom": 0.5}
    # The page itself neither scrolled nor zoomed under the fingers.
    assert page.evaluate("[scrollX, scrollY, visualViewport.scale]") == [0, 0, 1]


def test_a_finger_that_stays_after_two_does_nothing(film: tuple[Any, Hand, np.ndarray]) -> None:
    page, hand, _ = film
    x, y = centre(page)
    hand.send("touchStart", [(x - 50, y)])
    hand.send("touchStart", [(x - 50, y), (x + 50, y)])
    hand.send("touchMove", [(x - 50, y), (x + 150, y)])
    wait_for(page, lambda: level(page)["zoom"] == 2, "twice as large")
    hand.send("touchEnd", [(x - 50, y)])
    hand.send("touchMove", [(x - 50, y + 150)])
    hand.send("touchEnd", [])
    page.keyboard.press("i")
    wait_for(page, lambda: "INVERTED" in page.inner_text("#level"))
    assert level(page) == {"W": 2500, "L": 1900, "zoom": 2}


def test_a_double_tap_resets_to_the_right_polarity(film: tuple[Any, Hand, np.ndarray]) -> None:
    page, hand, wanted = film
    x, y = centre(page)
    for key in ("i", "2", "+", "s", "."):
        page.keyboard.press(key)
    wait_for(page, lambda: level(page)["zoom"] == 1.25)
    hand.tap(x, y)
    hand.tap(x, y, later=1.0)  # too late to be one with the first
    hand.tap(x + 200, y)  # elsewhere
    wait_for(page, lambda: "INVERTED" in page.inner_text("#level"))
    assert level(page)["zoom"] == 1.25
    hand.tap(x + 5, y, later=1.0)
    hand.tap(x, y + 5)
    shows(page, wanted, "reset")
    assert level(page) == {"W": 2500, "L": 1900, "zoom": 1}
    assert "FLIPPED" not in page.inner_text("#level")


def reset(page: Any) -> None:
    """Tap until it is as in the beginning: Chromium now and then drops a tap that follows a drag of its debugger."""

    def tapped() -> bool:
        if level(page)["zoom"] != 1:
            page.locator('[data-action="viewer.reset"]').tap()
            page.wait_for_timeout(500)
        return level(page)["zoom"] == 1

    wait_for(page, tapped)


def test_one_finger_does_what_a_button_chose(film: tuple[Any, Hand, np.ndarray]) -> None:
    page, hand, _ = film
    x, y = centre(page)
    page.locator('[data-action="viewer.zoom-out"]').tap()
    page.locator('[data-action="viewer.move"]').tap()
    wait_for(page, lambda: "moving" in page.inner_text("#level"))
    before, box = middle_of_mass(page), page.locator(".viewport").bounding_box()
    hand.drag([(x, y)], [(x + 60, y + 30)])
    wanted = before[0] + 60 / box["width"], before[1] + 30 / box["height"]
    wait_for(page, lambda: np.abs(np.subtract(middle_of_mass(page), wanted)).max() < 0.01, "the picture moved")
    assert level(page)["W"] == 2500

    reset(page)
    page.locator('[data-action="viewer.measure"]').tap()
    wait_for(page, lambda: "measuring" in page.inner_text("#level"))
    hand.drag([(x - 80, y), (x + 80, y + 40)], [(x - 100, y), (x + 100, y + 40)])  # two fingers measure nothing
    wait_for(page, lambda: level(page)["zoom"] > 1.1)
    assert page.locator(".svg-layer text").count() == 0
    reset(page)
    hand.drag([(x - 80, y)], [(x + 80, y)])
    until(page, "document.querySelector('.svg-layer text')?.textContent")
    told = page.text_content(".svg-layer text")
    wanted_length = 160 * TWELVE.shape[0] / min(box["height"], box["width"])
    assert float(told.split()[0]) == pytest.approx(wanted_length, abs=max(1.0, 0.02 * wanted_length))
    assert level(page)["W"] == 2500

    page.locator('[data-action="viewer.measure"]').tap()
    page.locator('[data-action="viewer.magnifier"]').tap()
    hand.send("touchStart", [(x, y)])
    hand.send("touchMove", [(x + 20, y + 20)])
    page.wait_for_selector("canvas.lens")
    box = page.locator("canvas.lens").bounding_box()
    assert box["y"] + box["height"] / 2 < y  # above the finger
    hand.send("touchEnd", [])
    page.wait_for_selector("canvas.lens", state="detached")
    assert level(page)["W"] == 2500


# What is done on the page itself by a tap, and not by a button of its own.
ELSEWHERE = {
    "study.finding-next": ".finding .line",
    "study.finding-previous": ".finding .line",
    "study.agree": '[data-answer-word="agree"]',
    "study.disagree": '[data-answer-word="disagree"]',
    "study.unsure": '[data-answer-word="unsure"]',
    "study.right": '[data-action="right"]',
    "study.wrong": '[data-action="wrong"]',
    "study.normal": '[data-action="normal"]',
    "study.add": "#another",
    "study.note": "#note",
    "study.sign": '[data-action="sign"]',
    "study.next": "a#next",
    "study.worklist": "a#back",
    "viewer.opacity-up": "#opacity",
    "viewer.opacity-down": "#opacity",
    "viewer.beside": "body",  # a button of its own where there is more than one image
    "study.cancel": "body",  # the other buttons do what Esc leaves
    "study.communicate": "body",  # buttons of its own while there is something to tell
}


def test_all_that_has_a_key_has_a_button_that_a_finger_hits(server: Server, session: Any) -> None:
    actions = re.findall(r'id: "((?:study|viewer)\.[a-z-]+)"', KEYS.read_text(encoding="utf-8"))
    assert len(actions) > 40
    study = server.send(phantom.dicom(phantom.make(7, size=128, findings=["Pneumothorax"])), "7.dcm")
    with watched(session, server.url) as page:
        opened(page, server, study)
        assert page.evaluate("matchMedia('(pointer: coarse)').matches") is True
        page.locator(".finding .line").first.tap()
        page.locator("details.rarer summary").tap()
        page.locator('[data-action="viewer.heatmap"]').tap()
        page.wait_for_selector("#legend:not([hidden])")
        for action in actions:
            own = page.locator(ELSEWHERE.get(action, f'[data-action="{action}"]')).first
            assert own.count() == 1, f"{action} has a key and no button"
        small = page.evaluate("""() => [...document.querySelectorAll('button, .button, summary, input[type=range]')]
            .map(one => [one, one.getBoundingClientRect()])
            .filter(([, box]) => box.width > 0 && (box.width < 44 || box.height < 44))
            .map(([one, box]) => `${one.className} ${one.textContent.trim()} ${box.width}x${box.height}`)""")
        assert small == []
        page.locator('[data-action="viewer.full-screen"]').tap()
        until(page, "document.fullscreenElement !== null")
        pressed = '[data-action="viewer.full-screen"]'
        wait_for(page, lambda: page.get_attribute(pressed, "aria-pressed") == "true")
        page.locator('[data-action="viewer.full-screen"]').tap()
        until(page, "document.fullscreenElement === null")
        before = seen(page)
        page.locator('[data-action="viewer.invert"]').tap()
        wait_for(page, lambda: np.abs(seen(page) - (255 - before)).max() <= 2, "inverted by its button")


def test_an_upright_tablet_gives_two_pictures_room(server: Server, session: Any) -> None:
    study = server.send(phantom.dicom(phantom.make(8, size=128)), "8.dcm")
    server.send(phantom.dicom(phantom.make(8, size=128, view="LATERAL"), number=2), "8-lateral.dcm")
    with watched(session, server.url) as page:
        opened(page, server, study)
        page.set_viewport_size({"width": 820, "height": 1180})
        page.locator('[data-action="viewer.beside"]').tap()
        until(page, "document.querySelectorAll('.pane:not(.coming)').length === 2")
        for film in page.locator(".film").all():
            box = film.bounding_box()
            assert min(box["width"], box["height"]) > 330
        # The tools are one line, which slides; what lies beyond its end is reached, and never hides what it has to say.
        tools = page.locator(".tools").bounding_box()
        assert tools["height"] < 60
        said = page.locator(".research").bounding_box()
        assert said["x"] + said["width"] <= 830
        page.locator("details.rarer summary").tap()
        last = page.locator('[data-action="viewer.full-screen"]')
        last.click(trial=True)
        assert last.bounding_box()["y"] > tools["y"] + tools["height"] - 5
