"""The real OHIF, set up as docs/ohif.md says, over a `wetread serve` process: list, images, thumbnails, SR and SC."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import browser
import cv2
import numpy as np
import ohif
import peers
import pydicom
import pytest
import tiny_package
from browser import chromium, fitted
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless
from serving import Server, serving

from wetread.findings import CHEXPERT
from wetread.radiograph import phantom

pytestmark = [
    *browser.needed,
    pytest.mark.timeout(600),  # 50 MB may come slowly
]

SIZE = 320
# OHIF's tour would lie over the pictures; an empty page has no storage.
NO_TOUR = "try { localStorage.setItem('shownTours', '[\"basicViewerTour\"]') } catch {}"
STUDY = "1.2.826.0.1.99.1"  # one image in each transfer syntax, each in a series of its own
COMPRESSED = {
    "JPEG 2000": (JPEG2000Lossless, "pylibjpeg"),
    "JPEG-LS": (JPEGLSLossless, "pyjpegls"),
    "RLE": (RLELossless, "pylibjpeg"),
}
SYNTAXES = ("inverted", "JPEG lossless", *COMPRESSED)
CANVAS = "document.querySelector('[data-cy=viewport-pane] canvas')"


def films(folder: Path) -> dict[str, bytes]:
    """Return a radiograph in each way that devices and archives write it, each turned otherwise to tell them apart."""
    original = pydicom.dcmread(BytesIO(phantom.dicom(phantom.make(5, size=SIZE))))
    pixels, found = original.pixel_array, {}
    for number, name in enumerate(SYNTAXES, 1):
        turned = np.rot90(pixels if number < 5 else pixels[:, ::-1], number)
        dataset = pydicom.dcmread(BytesIO(phantom.dicom(phantom.make(5, size=SIZE))))
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY, f"{STUDY}.{number}"
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{STUDY}.{number}.1"
        dataset.PatientName, dataset.PatientID, dataset.StudyDescription = "Müller^Zoë", "SYNTAX", "Transfer syntaxes"
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.SeriesDescription, dataset.SeriesNumber = name, number
        if name == "inverted":
            dataset.PhotometricInterpretation = "MONOCHROME1"
        dataset.Rows, dataset.Columns = turned.shape
        dataset.PixelData = np.ascontiguousarray(turned).tobytes()
        if name in COMPRESSED:
            syntax, plugin = COMPRESSED[name]
            dataset.compress(syntax, encoding_plugin=plugin, generate_instance_uid=False)
        dataset.save_as(buffer := BytesIO(), enforce_file_format=True)
        found[name] = buffer.getvalue()
    (folder / "plain.dcm").write_bytes(found["JPEG lossless"])
    done = peers.dcmtk("dcmcjpeg", "+e1", "+un", folder / "plain.dcm", folder / "lossless.dcm")
    assert done.returncode == 0, done.stderr
    return found | {"JPEG lossless": (folder / "lossless.dcm").read_bytes()}


@dataclass
class Room:
    """A Wetread behind nginx with OHIF beside it, and a browser that is signed in."""

    url: str
    server: Server
    context: Any
    analysed: str  # our key of the study that has SR and SC
    wrong: list[str] = field(default_factory=list)

    def rendered(self, study: str, series: str) -> np.ndarray:
        """Return the first picture of a series as the server draws it, uint8 [H, W] or [H, W, 3]."""
        answer = self.server.http.get(
            f"/dicomweb/studies/{study}/series/{series}/rendered", headers={"Accept": "image/png"}
        )
        assert answer.status_code == 200, answer.text
        return cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_UNCHANGED)

    def page(self) -> Any:
        """Return a new tab that keeps what goes wrong in it."""
        return self.watch(self.context.new_page())

    def watch(self, page: Any) -> Any:
        self.wrong.clear()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: self.wrong.append(f"exception: {error}"))
        page.on("console", lambda m: m.type == "error" and self.wrong.append(m.text))
        page.on("response", lambda r: r.status >= 400 and self.wrong.append(f"{r.status} {r.url}"))
        return page


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    folder = tmp_path_factory.mktemp("ohif")
    home = ohif.unpack(folder)
    (folder / "data").mkdir()
    package = tiny_package.write(folder / "tiny", CHEXPERT, population="phantom")
    settings = {
        "WETREAD_MODELS": str(package.path),
        "WETREAD_TRUSTED_PROXIES": "127.0.0.1",
        "WETREAD_TLS_BY_PROXY": "true",
        "WETREAD_OHIF": "/ohif/viewer",
        "WETREAD_DICOMWEB_ORIGINS": "https://ohif.example",
    }
    with serving(folder / "data", **settings) as server:
        sick = phantom.dicom(phantom.make(1, size=SIZE, findings=["Pneumothorax"]))
        analysed = server.send(("1.dcm", sick), wait=30)["studies"][0]["study"]
        back = [server.http.get(f"/api/v1/studies/{analysed}/{kind}").raise_for_status() for kind in ("sr", "sc")]
        store(server, *films(folder).values(), *(answer.content for answer in back))
        with ohif.beside(folder, home, str(server.http.base_url).rstrip("/")) as url:
            mapped = f"--host-resolver-rules=MAP ohif.example {url.removeprefix('https://')}"
            with chromium(mapped) as running:
                context = running.new_context(viewport={"width": 1280, "height": 800}, ignore_https_errors=True)
                context.add_init_script(NO_TOUR)
                page = context.new_page()
                page.goto(f"{url}/login{server.link.split('/login')[1]}")
                page.get_by_role("button", name="Log in").click()
                page.wait_for_url(f"{url}/")
                page.close()
                yield Room(url, server, context, analysed)
    shutil.rmtree(home)


def store(server: Server, *contents: bytes) -> None:
    head = b"--x\r\nContent-Type: application/dicom\r\n\r\n"
    body = b"".join(head + content + b"\r\n" for content in contents) + b"--x--\r\n"
    kind = 'multipart/related; type="application/dicom"; boundary=x'
    answer = server.http.post("/dicomweb/studies", content=body, headers={"Content-Type": kind})
    assert answer.status_code == 200, answer.text


@pytest.fixture
def page(room: Room) -> Iterator[Any]:
    page = room.page()
    yield page
    page.close()
    assert not room.wrong


def shows(page: Any, expected: np.ndarray) -> bool:
    """Tell whether the viewport shows this picture: the same where both have something, whatever the scale of grey."""
    address = page.evaluate(f"{CANVAS}?.width ? {CANVAS}.toDataURL('image/png') : ''")
    if not address:
        return False
    content = np.frombuffer(base64.b64decode(address.split(",")[1]), np.uint8)
    shown = cv2.imdecode(content, cv2.IMREAD_COLOR).astype(np.float32).mean(2)
    wanted = fitted(expected.astype(np.float32) if expected.ndim == 2 else expected.mean(2), shown.shape)
    inside = wanted > 0
    if shown[inside].std() == 0:
        return False
    return float(np.corrcoef(shown[inside], wanted[inside])[0, 1]) > 0.98


def until(page: Any, condition: Any, what: str) -> None:
    """Wait for a condition of a page; its own way of waiting needs eval, which OHIF's policy forbids."""
    for _ in range(600):
        if condition():
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{what} did not come within 60 s")


def test_the_list(room: Room, page: Any) -> None:
    page.goto(f"{room.url}/ohif/")
    row = page.locator("tr", has_text="Müller, Zoë")
    row.wait_for()
    assert "DX" in row.inner_text()
    assert "Transfer syntaxes" in row.inner_text()
    other = page.locator("tr", has_text="DX\\OT\\SR")
    other.wait_for()
    search = page.locator("table input").first
    for text, found, gone in (("zoë", row, other), ("Phantom", other, row)):
        search.fill(text)
        gone.wait_for(state="detached")
        found.wait_for()


def test_a_study_opens_from_its_page_and_shows_the_image_the_capture_and_the_report(room: Room) -> None:
    page = room.context.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{room.url}/studies/{room.analysed}")
    with room.context.expect_page() as opened:
        page.get_by_role("link", name="open in OHIF").click()
    page.close()
    viewer = room.watch(opened.value)
    viewer.wait_for_url(re.compile("StudyInstanceUIDs="))
    uid = viewer.url.split("StudyInstanceUIDs=")[1]
    series = {
        one["00080060"]["Value"][0]: one["0020000E"]["Value"][0]
        for one in room.server.http.get(f"/dicomweb/studies/{uid}/series").json()
    }
    assert set(series) == {"DX", "OT", "SR"}
    viewer.get_by_text("Confirm and hide").click()
    until(viewer, lambda: shows(viewer, room.rendered(uid, series["DX"])), "the radiograph")
    pictures = viewer.locator("[data-cy=study-browser-thumbnail] img")
    until(viewer, lambda: pictures.count() == 2, "the thumbnails")
    sizes = "all => all.every(image => Math.max(image.naturalWidth, image.naturalHeight) === 256)"
    until(viewer, lambda: pictures.evaluate_all(sizes), "thumbnails of 256 pixels")
    viewer.get_by_text("AI triage result").first.dblclick()
    viewer.get_by_text("Call: Likely").first.wait_for()
    said = viewer.locator("[data-cy=viewport-grid]").inner_text()
    assert "AI triage result, research use only" in said
    assert said.count("Kind of result: AI triage result, unverified; research use only, not a report") == 14
    viewer.get_by_text("AI triage overlay").first.dblclick()
    until(viewer, lambda: shows(viewer, room.rendered(uid, series["OT"])), "the capture")
    viewer.close()
    assert not room.wrong


def test_every_transfer_syntax(room: Room, page: Any) -> None:
    page.goto(f"{room.url}/ohif/viewer?StudyInstanceUIDs={STUDY}")
    for number, name in enumerate(SYNTAXES, 1):
        expected = room.rendered(STUDY, f"{STUDY}.{number}")
        page.get_by_text(name, exact=True).first.dblclick()
        until(page, lambda expected=expected: shows(page, expected), name)


def test_from_another_origin_with_a_token(room: Room) -> None:
    """No cookie is sent there; the answers are OHIF's to read because a setting names its origin."""
    token = room.server.http.headers["Authorization"].removeprefix("Bearer ")
    others = room.context.browser
    context = others.new_context(ignore_https_errors=True, bypass_csp=True)  # nginx's policy is that of one origin
    settings = ohif.block("js").replace("'/dicomweb'", f"'{room.url}/dicomweb'")
    context.route("**/app-config.js", lambda route: route.fulfill(body=settings, content_type="text/javascript"))
    context.add_init_script(NO_TOUR)
    page = context.new_page()
    page.set_default_timeout(60_000)
    asked: list[Any] = []
    page.on("request", lambda r: "/dicomweb/" in r.url and asked.append(r))
    page.goto(f"https://ohif.example/ohif/viewer?StudyInstanceUIDs={STUDY}&token={token}")
    until(page, lambda: shows(page, room.rendered(STUDY, f"{STUDY}.1")), "the radiograph")
    assert token not in page.url
    assert asked
    assert all(request.url.startswith(room.url) for request in asked)
    assert not any("cookie" in request.all_headers() for request in asked)
    context.close()
