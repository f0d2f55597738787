"""Every page for who cannot see, or sees badly, or uses the keyboard only: axe-core, and what the browser itself says.

Pages are found by asking every route (of which `authorisation.TABLE` must have all): one that is added is covered by
itself, in both themes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny_package
from web.authorisation import TABLE
from web.test_browser import CHROMIUM, FLAGS, Server, serving, sign_in, watched

from wetread.findings import CHEXPERT
from wetread.radiograph import phantom

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra dev")

AXE = Path(__file__).parents[2] / "frontend/node_modules/axe-core/axe.min.js"
NO_PAGES = ("/api/", "/dicomweb/", "/v2", "/static/", "/events", "/metrics", "/healthz", "/readyz")
SIZE = 256
# Besides its rules of WCAG 2.1 AA and good practice, that of 2.2 on the size of what one hits.
RUN = """async () => (await axe.run(document, {rules: {'target-size': {enabled: true}}, resultTypes: ['violations']}))
    .violations.flatMap(v => v.nodes.map(n => `${v.id}: ${n.target}: ${n.failureSummary} ${n.html.slice(0, 160)}`))"""
CONTRAST = """async () => (await axe.run(document, {runOnly: ['color-contrast'], resultTypes: ['violations']}))
    .violations.flatMap(v => v.nodes.map(n => `light: ${n.target}: ${n.failureSummary}`))"""

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install -y chromium"),
    pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core: python hatch_build.py, or npm ci in frontend"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("accessible")
    (folder / "data").mkdir()
    package = tiny_package.write(folder / "tiny", CHEXPERT, population="phantom")
    with serving(folder, str(package.path)) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def session(server: Server, browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1366, "height": 768}, timezone_id="Europe/Berlin")
    sign_in(context, server)
    yield context
    context.close()


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
            if "text/html" in http.get(address).headers.get("content-type", ""):
                found.append(address)
    assert {"/", "/login", "/users", "/settings", f"/studies/{study}"} <= set(found)
    return found


def violations(page: Any) -> list[str]:
    """Return what axe-core finds wrong in the dark theme, and the contrasts that are wrong in the light one."""
    cdp = page.context.new_cdp_session(page)  # the content policy lets no script in by the page's own ways
    cdp.send("Runtime.evaluate", {"expression": AXE.read_text(encoding="utf-8") + "; 0"})
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


def test_axe_finds_no_violation_on_any_page(server: Server, session: Any, pages: list[str]) -> None:
    found = []
    with watched(session, server.url) as page:
        for address in pages:
            page.goto(server.url + address)
            found += violations(page)
    assert not found, "\n".join(found)
