"""Every page for who cannot see, or sees badly, or uses the keyboard only: axe-core, and what the browser itself says.

Pages are found by asking every route (of which `authorisation.TABLE` must have all): one that is added is covered by
itself, in both themes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import browser
import cv2
import httpx
import numpy as np
import pytest
from browser import Server, signed_in, until, watched
from web.authorisation import TABLE

from wetread.radiograph import phantom

AXE = Path(__file__).parents[2] / "frontend/node_modules/axe-core/axe.min.js"
NO_PAGES = ("/api/", "/dicomweb/", "/v2", "/static/", "/events", "/metrics", "/healthz", "/readyz")
SIZE = 256
# Besides its rules of WCAG 2.1 AA and good practice, that of 2.2 on the size of what one hits.
RUN = """async () => (await axe.run(document, {rules: {'target-size': {enabled: true}}, resultTypes: ['violations']}))
    .violations.flatMap(v => v.nodes.map(n => `${v.id}: ${n.target}: ${n.failureSummary} ${n.html.slice(0, 160)}`))"""
CONTRAST = """async () => (await axe.run(document, {runOnly: ['color-contrast'], resultTypes: ['violations']}))
    .violations.flatMap(v => v.nodes.map(n => `light: ${n.target}: ${n.failureSummary}`))"""

pytestmark = [
    *browser.needed,
    pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core: python hatch_build.py, or npm ci in frontend"),
]


@pytest.fixture(scope="module")
def session(server: Server, chromium: Any) -> Iterator[Any]:
    with signed_in(chromium, server, 1366, 768, timezone_id="Europe/Berlin") as context:
        yield context


@pytest.fixture(scope="module")
def study(server: Server) -> str:
    """Send what makes every kind of row; give a study with findings, two images and a prior one."""
    server.send(phantom.dicom(phantom.make(2, size=SIZE)), "2.dcm", priority="urgent")
    server.send(phantom.dicom(phantom.make(3, size=SIZE)), "3.dcm", priority="critical")
    server.send(b"Dear colleague", "letter.txt")
    found = server.send(phantom.dicom(phantom.make(1, size=SIZE)), "1.dcm")
    server.send(phantom.dicom(phantom.make(1, view="LATERAL", size=SIZE), number=2), "1-lateral.dcm")
    return found


@pytest.fixture(scope="module")
def pages(server: Server, session: Any, study: str) -> list[str]:
    """Ask every route that takes a GET, as the browser would; give the addresses of those that answer with a page."""
    cookies = {cookie["name"]: cookie["value"] for cookie in session.cookies()}
    image = server.api.get(f"/studies/{study}").json()["images"][0]["image"]
    parameters = {"study": study, "image": image, "model": server.api.get("/ai").json()["models"][0]["id"]}
    found = []
    with httpx.Client(base_url=server.url, cookies=cookies, trust_env=False, timeout=60) as http:
        for method, path in TABLE:
            if method != "GET" or path.startswith(NO_PAGES):
                continue
            missing = set(re.findall(r"{(\w+)}", path)) - set(parameters)
            assert not missing, f"{path}: say in `parameters` what {missing} is to be filled with"
            address = path.format_map(parameters)
            if "<!doctype html>" in http.get(address).text[:100]:
                found.append(address)
    assert {"/", "/login", "/users", "/settings", f"/studies/{study}"} <= set(found)
    return found


@cache
def _axe() -> str:
    return AXE.read_text(encoding="utf-8")


def violations(page: Any) -> list[str]:
    """Return what axe-core finds wrong in the dark theme, and the contrasts that are wrong in the light one."""
    cdp = page.context.new_cdp_session(page)  # the content policy lets no script in by the page's own ways
    cdp.send("Runtime.evaluate", {"expression": _axe() + "; 0"})
    found = page.evaluate(RUN)
    page.evaluate("document.documentElement.className = 'light'")
    found += page.evaluate(CONTRAST)
    shoot(page, "light")
    page.evaluate("document.documentElement.className = 'dark'")
    shoot(page, "dark")
    return [f"{page.url}: {one}" for one in found]


def shoot(page: Any, theme: str) -> None:
    """Keep a picture of the page in the folder SCREENSHOTS, if there is one, to be looked at."""
    if folder := os.environ.get("SCREENSHOTS"):
        name = re.sub(r"\W+", "-", page.url.split("/", 3)[3])[:40] or "worklist"
        page.screenshot(path=f"{folder}/{name}-{theme}.png")


@dataclass
class Found:
    """What was wrong on the pages."""

    axe: list[str] = field(default_factory=list)
    wide: list[str] = field(default_factory=list)
    shifted: dict[str, float] = field(default_factory=dict)


# One monitor, two 4K monitors side by side, a tablet both ways, and 1366 × 768 with everything twice as large.
SIZES = ((1366, 768), (1920, 1080), (3840, 2160), (7680, 2160), (1024, 768), (768, 1024), (683, 384))
# States of a page that its address does not have: what is done there, and what then shows.
STATES = {
    "/": [("document.querySelector('details.more').open = true", "#narrow"), ("key ?", "dialog#keys[open]")],
    "/studies/{study}": [
        ("document.querySelectorAll('.finding details').forEach(d => d.open = true)", ".finding details[open]"),
        ("key h", "#legend:not([hidden])"),
        ("key ?", "dialog#keys[open]"),
        (
            "document.querySelector('#keys').close(), document.querySelector('[data-action=\"study.refuse\"]').click()",
            "dialog#refusing[open]",
        ),
    ],
}
SHIFTS = """new PerformanceObserver(list => {
    for (const {hadRecentInput, value} of list.getEntries()) if (!hadRecentInput)
        window.shifted = (window.shifted ?? 0) + value;
}).observe({type: 'layout-shift', buffered: true})"""


@pytest.fixture(scope="module")
def found(server: Server, session: Any, pages: list[str], study: str) -> Found:
    """Walk all pages once."""
    found = Found()
    with watched(session, server.url, allow="status of 404") as page:
        page.add_init_script(SHIFTS)
        for address in pages:
            reading = address == f"/studies/{study}"
            page.goto(server.url + address)
            if reading:
                until(page, "document.body.dataset.shown")
            if address == "/":
                until(page, "document.querySelector('#live').textContent === 'live'")
            found.shifted[address] = page.evaluate("window.shifted ?? 0")
            found.axe += violations(page)
            for do, shows in STATES.get(address.replace(study, "{study}"), ()):
                page.keyboard.press(do[-1]) if do.startswith("key ") else page.evaluate(do)
                page.wait_for_selector(shows)
                found.axe += violations(page)
            page.keyboard.press("Escape")
            for width, height in SIZES:
                if reading and width > 2000:
                    continue  # Chromium draws such a picture without a graphics card for minutes
                page.set_viewport_size({"width": width, "height": height})
                if (over := page.evaluate("document.documentElement.scrollWidth - innerWidth")) > 0:
                    found.wide.append(f"{address} at {width}: {over} px too wide")
            page.set_viewport_size({"width": 1366, "height": 768})
    return found


def test_german_is_as_accessible_and_fits_as_well(
    server: Server, chromium: Any, session: Any, pages: list[str], study: str
) -> None:
    """Its words are longer; what axe-core says of the markup is the same, so that names and roles are asked for."""
    more = {"locale": "de-DE", "storage_state": session.storage_state(), "viewport": {"width": 1366, "height": 768}}
    context, wrong = chromium.new_context(**more), []
    with watched(context, server.url, allow="status of 404") as page:
        for address in pages:
            page.goto(server.url + address)
            assert page.evaluate("document.documentElement.lang") == "de"
            for width, height in ((1366, 768), (768, 1024), (683, 384)):
                page.set_viewport_size({"width": width, "height": height})
                if (over := page.evaluate("document.documentElement.scrollWidth - innerWidth")) > 0:
                    wrong.append(f"{address} at {width}: {over} px too wide")
            page.set_viewport_size({"width": 1366, "height": 768})
            wrong += [f"{address}: clipped: {words}" for words in page.evaluate(CLIPPED)]
        page.goto(f"{server.url}/studies/{study}")
        until(page, "document.body.dataset.shown")
        assert page.inner_text("#findings h2") == "Warum sie hier steht"
        page.keyboard.press("?")
        page.get_by_text("Untersuchung ist unauffällig").wait_for()  # the front end's own words
        wrong += violations(page)
    context.close()
    assert not wrong, "\n".join(wrong)


# Words of ours that do not fit where they stand.
CLIPPED = """[...document.querySelectorAll('button, a.button, th, dt, h1, h2, h3, legend, label, summary, .mark')]
    .filter(e => e.clientWidth > 1 && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== 'visible')
    .map(e => e.textContent.trim().slice(0, 60))"""


def test_axe_finds_no_violation_on_any_page(found: Found) -> None:
    assert not found.axe, "\n".join(found.axe)


def test_nothing_moves_while_a_page_comes(found: Found) -> None:
    assert {page: shift for page, shift in found.shifted.items() if shift > 0.01} == {}


def test_every_page_fits_every_screen(found: Found) -> None:
    assert not found.wide, "\n".join(found.wide)


def test_every_page_can_be_found(server: Server, session: Any, pages: list[str]) -> None:
    """Follow the links from the worklist; a page that no link leads to is lost."""
    cookies = {cookie["name"]: cookie["value"] for cookie in session.cookies()}
    seen, left = set(), ["/"]
    with httpx.Client(base_url=server.url, cookies=cookies, trust_env=False, timeout=60) as http:
        while left:
            answer = http.get(left.pop())
            if "text/html" in answer.headers.get("content-type", ""):
                more = set(re.findall(r'<a[^>]* href="(/[^"?#]*)', answer.text)) - seen
                left += [address for address in more if not address.startswith(NO_PAGES)]
                seen |= more
    assert set(pages) - seen <= {"/login"}  # one comes there by logging out


def test_a_theme_is_chosen_and_there_with_the_first_bytes(server: Server, chromium: Any, session: Any) -> None:
    with watched(session, server.url) as page:
        page.goto(f"{server.url}/settings")
        ground = page.evaluate(GROUND)
        for theme, bright in (("light", True), ("as the system", True), ("dark", False)):
            page.emulate_media(color_scheme="light")
            page.get_by_label(theme, exact=True).check()
            with page.expect_navigation():
                page.get_by_role("button", name="Keep").click()
            assert (max(page.evaluate(GROUND)) > 200) is bright, theme
            # Without any script: nothing waits for one.
            context = chromium.new_context(storage_state=session.storage_state(), java_script_enabled=False)
            bare = context.new_page()
            bare.emulate_media(color_scheme="light")
            bare.goto(server.url + "/")
            shot = cv2.imdecode(np.frombuffer(bare.screenshot(), np.uint8), cv2.IMREAD_GRAYSCALE)
            assert (np.median(shot) > 200) is np.bool_(bright), theme
            context.close()
        assert page.evaluate(GROUND) == ground


GROUND = """() => { const c = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d');
    c.fillStyle = getComputedStyle(document.body).backgroundColor; c.fillRect(0, 0, 1, 1);
    return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3) }"""
COLOURS = """theme => { document.documentElement.className = theme;
    const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
    const c = canvas.getContext('2d', {willReadFrequently: true});
    const probe = document.body.appendChild(document.createElement('i'));
    return Object.fromEntries(['ground', 'panel', 'raised', 'text', 'quiet', 'edge', 'focus', 'critical', 'urgent',
        'routine', 'unanalysed'].map(name => {
        probe.style.color = `var(--${name})`; c.fillStyle = getComputedStyle(probe).color;
        c.fillRect(0, 0, 1, 1); return [name, [...c.getImageData(0, 0, 1, 1).data].slice(0, 3)] })) }"""


def contrast(one: list[int], other: list[int]) -> float:
    """Return the contrast ratio of two sRGB colours (WCAG 2.1, 1.4.3)."""
    light = [v / 12.92 if (v := x / 255) <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for x in (*one, *other)]
    luminance = sorted(np.dot([0.2126, 0.7152, 0.0722], light[i : i + 3]) for i in (0, 3))
    return float((luminance[1] + 0.05) / (luminance[0] + 0.05))


def test_every_colour_of_the_style_sheet_can_be_read_on_every_ground(server: Server, session: Any) -> None:
    with watched(session, server.url) as page:
        page.goto(f"{server.url}/settings")
        for theme in ("dark", "light"):
            colours = page.evaluate(COLOURS, theme)
            for ground in ("ground", "panel", "raised"):
                for words in ("text", "quiet", "critical", "urgent", "routine", "unanalysed"):
                    assert contrast(colours[words], colours[ground]) >= 4.5, (theme, words, ground)
                assert contrast(colours["focus"], colours[ground]) >= 3, (theme, ground)
            assert contrast(colours["edge"], colours["ground"]) >= 3, theme  # 1.4.11: the field that one types into


def test_charts_are_drawn_in_the_colours_of_the_theme(server: Server, session: Any) -> None:
    with watched(session, server.url) as page:
        page.goto(f"{server.url}/operations")
        page.wait_for_selector("figure[data-drawn] canvas")
        brightest = page.evaluate(
            """[...document.querySelectorAll('figure canvas')].map(canvas => {
            const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            return data.reduce((most, v, n) => n % 4 === 1 && data[n + 2] > 200 ? Math.max(most, v) : most, 0) })"""
        )
        assert brightest
        assert min(brightest) > 128  # the ground is near black


def test_the_stage_stays_dark_in_the_light(server: Server, session: Any, study: str) -> None:
    with watched(session, server.url) as page:
        page.goto(f"{server.url}/studies/{study}")
        colours = """theme => { document.documentElement.className = theme;
            return ['.picture', '.tools', '.strip', '.bar', 'body']
            .map(name => getComputedStyle(document.querySelector(name)))
            .flatMap(s => [s.backgroundColor, s.color]) }"""
        dark, light = page.evaluate(colours, "dark"), page.evaluate(colours, "light")
        assert dark[:8] == light[:8]
        assert dark[8:] != light[8:]


def test_the_keyboard_gets_past_the_head_and_its_focus_is_seen(server: Server, session: Any, study: str) -> None:
    focus = """() => { const e = document.activeElement, shown = e.matches('input[type=file]') ? e.closest('label') : e;
        const style = getComputedStyle(shown), box = shown.getBoundingClientRect();
        return {name: e.outerHTML.slice(0, 120), body: e === document.body, id: e.id,
            seen: style.outlineStyle !== 'none' && parseInt(style.outlineWidth) > 1 && box.width * box.height > 1} }"""
    with watched(session, server.url) as page:
        for address in ("/", "/settings", "/users"):
            page.goto(server.url + address)
            page.keyboard.press("Tab")
            assert "skip" in page.evaluate(focus)["name"]
            page.keyboard.press("Enter")
            assert page.evaluate(focus)["id"] == "main"
            page.goto(server.url + address)
            for _ in range(60):
                page.keyboard.press("Tab")
                at = page.evaluate(focus)
                if at["body"]:
                    break
                assert at["seen"], f"{address}: {at['name']}"


def test_what_was_read_out_is_not_read_out_again(server: Server, session: Any, study: str) -> None:
    with watched(session, server.url) as page:
        page.goto(server.url + "/")
        until(page, "document.querySelector('#live').textContent === 'live'")
        page.evaluate("document.querySelector('#notices .notice').same = true")
        new = server.send(b"Dear colleague, too", "another.txt")  # of which no notice speaks
        page.wait_for_selector(f'tr[data-study="{new}"]')  # the list was fetched anew, and the notices with it
        assert page.evaluate("document.querySelector('#notices .notice').same")
