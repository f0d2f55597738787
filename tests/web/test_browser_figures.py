"""The pages of figures in a real browser: every chart is drawn, has a table that says the same, and stays live."""

from __future__ import annotations

import os
import re
from pathlib import Path

import browser
import pytest
from browser import until, watched

from wetread.radiograph import phantom

pytestmark = browser.needed


@pytest.fixture(scope="module")
def judged(server):
    """Send two phantoms and sign them: one answer agrees, one does not."""
    for seed, answer in ((41, "agree"), (42, "disagree")):
        study = server.send(phantom.dicom(phantom.make(seed, size=160, findings=["Cardiomegaly"])), f"{seed}.dcm")
        found = server.api.get(f"/studies/{study}").json()
        finding = found["findings"][0]["finding"]
        body = {"state": "signed", "findings": [{"finding": finding, "answer": answer}]}
        done = server.api.post(f"/studies/{study}/reviews", json=body)
        assert done.status_code < 300, done.text
    return server


def drawn(page, server, path):
    """Open a page at the size of a laptop; every chart on it has as many names as its table has rows."""
    page.set_viewport_size({"width": 1366, "height": 768})
    page.goto(server.url + path)
    until(page, "[...document.querySelectorAll('figure')].every(figure => figure.dataset.drawn)")
    for figure in page.query_selector_all("figure"):
        assert int(figure.get_attribute("data-drawn")) == len(figure.query_selector_all("tbody tr"))
        canvas = figure.query_selector("canvas")
        assert "the table below says the same" in canvas.get_attribute("aria-label")
        # Something is on it that is not the ground: a chart drawn in no colour would be an empty one.
        assert canvas.evaluate("""c => {
            const data = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
            const shades = new Set();
            for (let i = 0; i < data.length; i += 4) if (data[i + 3] > 200) shades.add(data[i]);
            return Math.max(...shades);
        }""") > 150  # fmt: skip
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the window"
    folder = os.environ.get("WETREAD_SCREENSHOTS")
    if folder:
        page.screenshot(
            path=Path(folder) / f"{path.strip('/').split('?')[0].replace('/', '-')[:20]}.png", full_page=True
        )
    return page


def test_quality_is_drawn(page, judged):
    drawn(page, judged, "/quality?days=7")
    signed = re.search(r"(\d+) readings signed in 7 days", page.inner_text("main"))
    assert signed is not None
    assert int(signed[1]) >= 2  # other tests of this server sign too
    page.get_by_text("as a table").first.click()
    assert page.locator("table.numbers tbody tr").first.is_visible()
    page.get_by_role("link", name="28 days").click()
    page.wait_for_url("**/quality?days=28")


def test_a_model_has_its_card_and_numbers(page, judged):
    page.goto(judged.url + "/models")
    page.locator("main table a").first.click()
    page.wait_for_url("**/models/*")
    drawn(page, judged, "/" + page.url.split("/", 3)[3])
    text = page.inner_text("main")
    assert "golden check" in text
    assert "Operating points" in text


def test_operations_stays_live_and_says_when_it_is_not(session, judged):
    with watched(session, judged.url, allow="503") as page:
        _lives(page, judged)


def _lives(page, server):
    drawn(page, server, "/operations")
    page.locator("#flow summary").first.click()
    until(page, "document.querySelector('#live').textContent === 'live'")
    assert page.locator("#flow details").first.evaluate("details => details.open")
    page.route("**/operations", lambda route: route.fulfill(status=503, body=""))
    until(page, "document.querySelector('#live').textContent.startsWith('not live')")
    page.unroute("**/operations")
    until(page, "document.querySelector('#live').textContent === 'live'")
