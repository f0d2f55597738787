"""The reading room in a real browser: a `wetread serve` process, phantoms sent over its API, the system's Chromium.

Every page is watched: an error on the console, an exception, a breach of the content policy, or a request that
leaves the server fails the test.
"""

from __future__ import annotations

import base64
import io
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import cv2
import httpx
import numpy as np
import pydicom
import pytest
import tiny_package

from wetread.findings import CHEXPERT
from wetread.radiograph import phantom

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra dev")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SIZE = 320
PATIENTS = {1: ["Pneumothorax"], 2: ["Pleural Effusion"], 3: [], 4: ["Fracture"], 5: ["Cardiomegaly"], 6: []}

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install -y chromium"),
]


class Server:
    """A `wetread serve` process over a folder of its own, and a client with an API token."""

    def __init__(self, data: Path, models: str, port: int = 0, **more: str) -> None:
        settings = {"WETREAD_MODELS": models, "WETREAD_THREADS": "1"} | more
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("WETREAD_")} | settings
        self.data = data
        wetread = [sys.executable, "-m", "wetread"]
        line = self.start(port)
        found = re.search(r"(http://[^/]+)(/login\S+)", line)
        assert found, f"no login link but {line!r}: {(data.parent / 'serve.log').read_text()[-2000:]}"
        self.url, self.login = found[1], found[2]
        token = subprocess.run(
            [*wetread, "token", "create", "modality", "--role", "administrator", "--data", str(data)],
            capture_output=True,
            env=self.environment,
            cwd=data.parent,
            text=True,
            check=True,
        ).stdout.strip()
        headers = {"Authorization": f"Bearer {token}"}
        self.api = httpx.Client(base_url=f"{self.url}/api/v1", headers=headers, timeout=60, trust_env=False)

    def start(self, port: int) -> str:
        """Start the process and return what it says first; also again, over what it left."""
        with (self.data.parent / "serve.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "wetread", "serve", "--data", str(self.data), "--port", str(port)],
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment,
                cwd=self.data.parent,
                text=True,
            )
        return self.process.stdout.readline()

    def send(self, content: bytes, name: str, **fields: str) -> str:
        answer = self.api.post("/studies?wait=30", files=[("files", (name, content))], data=fields)
        assert answer.status_code == 201, answer.text
        return answer.json()["studies"][0]["study"]

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.process.stdout.close()

    def stop(self) -> None:
        self.api.close()
        self.end()


def written(film: pydicom.Dataset) -> bytes:
    content = io.BytesIO()
    film.save_as(content)
    return content.getvalue()


@contextmanager
def serving(folder: Path, models: str, port: int = 0, **settings: str):
    server = Server(folder / "data", models, port, **settings)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Serve a package whose scores have a closed form, so that there are findings and maps whatever is shipped."""
    folder = tmp_path_factory.mktemp("room")
    (folder / "data").mkdir()
    package = tiny_package.write(folder / "tiny", CHEXPERT, population="phantom")
    with serving(folder, str(package.path)) as server:
        yield server


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def session(server, chromium):
    """Sign in by the one-time link, once; give the browser's context, which keeps the session and the cache."""
    context = chromium.new_context(viewport={"width": 1024, "height": 640})
    sign_in(context, server)
    yield context
    context.close()


def sign_in(context, server) -> None:
    context.add_init_script(
        "addEventListener('securitypolicyviolation', e => console.error('POLICY', e.violatedDirective, e.blockedURI))"
    )
    page = context.new_page()
    page.goto(server.url + server.login)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(server.url + "/")
    page.close()


@contextmanager
def watched(context, url, allow: str = r"(?!)"):
    """Give a page; fail when anything went wrong on it, save console errors that match `allow`."""
    wrong: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: wrong.append(f"exception: {error}"))
    page.on("console", lambda m: m.type == "error" and not re.search(allow, m.text) and wrong.append(m.text))
    page.on("request", lambda r: r.url.startswith((url, "data:", "blob:")) or wrong.append(f"left: {r.url}"))
    page.set_default_timeout(60_000)
    yield page
    page.close()
    assert not wrong


@pytest.fixture
def page(server, session):
    with watched(session, server.url) as page:
        yield page


@pytest.fixture(scope="module")
def studies(server):
    """Send the phantoms; every second one as MONOCHROME1. Gives seed to study."""
    return {
        seed: server.send(
            phantom.dicom(phantom.make(seed, size=SIZE, findings=findings), inverted=bool(seed % 2)), f"{seed}.dcm"
        )
        for seed, findings in PATIENTS.items()
    }


def wait_for(page, condition, what: str = "the condition", seconds: float = 60.0) -> None:
    """Return once the condition holds; fail when it does not within `seconds`."""
    for _ in range(int(seconds / 0.1)):
        if condition():
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{what} did not come to hold")


def until(page, expression: str, arg: object = None) -> None:
    """Wait until a JavaScript expression holds; playwright's own way needs eval, which the content policy forbids."""
    wait_for(page, lambda: page.evaluate(expression, arg), expression)


def open_study(page, server, study):
    page.goto(f"{server.url}/studies/{study}")
    until(page, "document.body.dataset.shown")
    settled(page)


def level(page) -> dict[str, float]:
    """Return window, level and zoom as the page says them; it says them after each drawing."""
    found = re.search(r"W (\d+) +L (-?\d+) +zoom ([\d.]+)×", page.inner_text("#level"))
    return dict(zip(("W", "L", "zoom"), map(float, found.groups()), strict=True))


def settled(page) -> np.ndarray:
    """Return the picture once it has stopped changing."""
    last = picture_only(page)
    for _ in range(100):
        page.wait_for_timeout(200)
        now = picture_only(page)
        if np.array_equal(now, last):
            return now
        last = now
    raise AssertionError("the picture does not come to rest")


def picture_only(page) -> np.ndarray:
    """Return the pixels of the radiograph's own canvas, without what lies over it, float [H, W]."""
    address = page.evaluate("document.querySelector('#viewport canvas').toDataURL('image/png')")
    content = np.frombuffer(base64.b64decode(address.split(",")[1]), np.uint8)
    return cv2.imdecode(content, cv2.IMREAD_COLOR).astype(float).mean(2)


def fitted(pixels: np.ndarray, shape) -> np.ndarray:
    """Return a picture as a viewer shows it whole: scaled to fit, centred, black around."""
    scale = min(shape[0] / pixels.shape[0], shape[1] / pixels.shape[1])
    centre = [(shape[i] - scale * pixels.shape[i]) / 2 + 0.5 * scale - 0.5 for i in (0, 1)]
    matrix = np.array([[scale, 0, centre[1]], [0, scale, centre[0]]])
    return cv2.warpAffine(pixels.astype(np.float32), matrix, (shape[1], shape[0]), flags=cv2.INTER_LINEAR)


def reference(server, study) -> np.ndarray:
    """Return a study's first image as the server renders it for a picture of its own, uint8 [H, W]."""
    image = server.api.get(f"/studies/{study}").json()["images"][0]["image"]
    content = server.api.get(f"/images/{image}/preview.png?side=1024").content
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)


def test_a_login_link_works_once(server, session):
    with watched(session, server.url, allow="403") as page:
        page.goto(server.url + server.login)
        page.get_by_role("button", name="Log in").click()
        assert "used already" in page.inner_text("body")


class TestWorklist:
    def test_it_updates_itself(self, server, page, studies):
        page.goto(server.url + "/")
        until(page, "document.querySelector('#live').textContent === 'live'")
        before = page.locator("#rows tr[data-study]").count()
        study = server.send(phantom.dicom(phantom.make(71, size=SIZE)), "71.dcm")
        page.wait_for_selector(f'tr[data-study="{study}"]')
        assert page.locator("#rows tr[data-study]").count() == before + 1
        until(page, f"document.querySelector('#counts dd').textContent === '{before + 1}'")

    def test_the_row_in_focus_stays_where_it_is(self, server, page, studies):
        page.goto(server.url + "/")
        page.keyboard.press("j")
        page.keyboard.press("j")
        focused = page.evaluate("document.activeElement.dataset.study")
        place = page.locator(f'tr[data-study="{focused}"]').bounding_box()["y"]
        study = server.send(phantom.dicom(phantom.make(72, size=SIZE)), "72.dcm", priority="critical")
        page.wait_for_selector(f'tr[data-study="{study}"]')
        page.wait_for_timeout(400)
        assert page.evaluate("document.activeElement.dataset.study") == focused
        assert page.locator(f'tr[data-study="{focused}"]').bounding_box()["y"] == pytest.approx(place, abs=0.5)
        page.keyboard.press("Escape")
        page.mouse.move(5, 5)
        listed = [row["study"] for row in server.api.get("/worklist").json()["studies"]]
        until(
            page,
            "wanted => JSON.stringify([...document.querySelectorAll('#rows tr')].map(r => r.dataset.study)) === wanted",
            str(listed).replace("'", '"').replace(" ", ""),
        )

    def test_a_taller_row_above_does_not_push_the_row_in_focus(self, server, page, studies):
        film = pydicom.dcmread(io.BytesIO(phantom.dicom(phantom.make(74, size=SIZE))))
        above = server.send(written(film), "74.dcm")
        below = server.send(phantom.dicom(phantom.make(75, size=SIZE)), "75.dcm")
        page.goto(server.url + "/")
        page.keyboard.press("End")
        assert page.evaluate("document.activeElement.dataset.study") == below
        place = page.locator(f'tr[data-study="{below}"]').bounding_box()["y"]
        film.PixelData = bytes(len(film.PixelData))  # other pixels under the same UID: a caution, so a taller row
        assert server.send(written(film), "74.dcm") == above
        page.locator(f'tr[data-study="{above}"]').get_by_text("quarantined").wait_for()
        page.wait_for_timeout(400)
        assert page.locator(f'tr[data-study="{below}"]').bounding_box()["y"] == pytest.approx(place, abs=0.5)
        page.keyboard.press("Escape")
        page.mouse.move(5, 5)
        until(page, "document.querySelector('#rows').style.translate === ''")

    def test_the_row_under_the_pointer_stays_where_it_is(self, server, page, studies):
        page.goto(server.url + "/")
        row = page.locator("#rows tr").nth(1)
        row.hover()
        study, place = row.get_attribute("data-study"), row.bounding_box()["y"]
        new = server.send(phantom.dicom(phantom.make(74, size=SIZE)), "74.dcm", priority="critical")
        page.wait_for_selector(f'tr[data-study="{new}"]')
        page.wait_for_timeout(400)
        assert page.locator(f'tr[data-study="{study}"]').bounding_box()["y"] == place

    def test_keys_walk_the_list_and_open_a_study(self, server, page, studies):
        page.goto(server.url + "/")
        shown = page.locator("#rows tr")
        for key, place in (("j", 0), ("ArrowDown", 1), ("j", 2), ("k", 1), ("ArrowUp", 0), ("End", -1), ("Home", 0)):
            page.keyboard.press(key)
            wanted = shown.nth(place if place >= 0 else shown.count() - 1).get_attribute("data-study")
            assert page.evaluate("document.activeElement.dataset.study") == wanted, key
        page.keyboard.press("?")
        assert page.locator("dialog#keys").is_visible()
        page.keyboard.press("Escape")
        assert not page.locator("dialog#keys").is_visible()
        page.locator("#rows tr").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_url("**/studies/*")

    def test_one_class_only(self, server, page, studies):
        server.send(phantom.dicom(phantom.make(75, size=SIZE)), "75.dcm", priority="critical")
        page.goto(server.url + "/")
        page.click("#filter-critical")
        page.wait_for_selector("#filter-critical[aria-current]")
        assert {m.strip()[:1] for m in page.locator("#rows .mark:first-child").all_inner_texts()} == {"▲"}

    def test_files_by_the_picker(self, server, page, studies):
        page.goto(server.url + "/")
        files = [
            {"name": "chest.dcm", "mimeType": "", "buffer": phantom.dicom(phantom.make(76, size=SIZE))},
            {"name": "letter.txt", "mimeType": "text/plain", "buffer": b"Dear colleague"},
        ]
        page.set_input_files("#files", files)
        until(page, "document.querySelectorAll('#added li[data-state=received]').length === 2")
        texts = page.locator("#added li").all_inner_texts()
        assert texts == ["chest.dcm: received", "letter.txt: received"]
        study = page.locator("#added a").first.get_attribute("href").rsplit("/", 1)[1]
        page.wait_for_selector(f'tr[data-study="{study}"]')
        until(
            page,
            "[...document.querySelectorAll('#rows tr')].some(r => /NOT ANALYSED.*letter.txt/s.test(r.textContent))",
        )

    def test_files_by_drag_and_drop(self, server, page, studies):
        page.goto(server.url + "/")
        content = list(phantom.jpeg(phantom.make(77, size=SIZE)))
        transfer = page.evaluate_handle(
            """bytes => { const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], 'chest.jpg')); return transfer }""",
            content,
        )
        page.dispatch_event("body", "dragover", {"dataTransfer": transfer})
        assert page.locator("#drop").is_visible()
        page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
        page.wait_for_selector("#added a")
        assert not page.locator("#drop").is_visible()
        assert page.locator("#added li").inner_text() == "chest.jpg: received"

    def test_an_address_inside_the_house_is_refused_in_words(self, server, session):
        with watched(session, server.url, allow="status of 4") as page:
            page.goto(server.url + "/")
            page.fill("#url", "http://127.0.0.1:1/chest.jpg")
            page.keyboard.press("Enter")
            page.wait_for_selector("#added li[data-state=refused]")
            assert "refused: url: " in page.locator("#added li").inner_text()


class TestPicture:
    @pytest.mark.parametrize("seed", [1, 2])  # MONOCHROME1 and MONOCHROME2
    def test_bone_is_bright_as_the_server_renders_it(self, server, page, studies, seed):
        open_study(page, server, studies[seed])
        shown = picture_only(page)
        wanted = fitted(reference(server, studies[seed]), shown.shape)
        assert np.abs(shown - wanted).mean() < 2
        assert np.corrcoef(shown.ravel(), wanted.ravel())[0, 1] > 0.999

    def test_an_8_bit_image_is_shown_value_for_value(self, server, page):
        study = server.send(phantom.jpeg(phantom.make(8, size=SIZE)), "8.jpg")
        open_study(page, server, study)
        shown = picture_only(page)
        assert np.abs(shown - fitted(reference(server, study), shown.shape)).mean() < 2

    def test_invert_is_the_negative_and_reset_undoes_it(self, server, page, studies):
        open_study(page, server, studies[1])
        original = picture_only(page)
        inside = fitted(np.full((SIZE, SIZE), 255), original.shape) > 254
        page.keyboard.press("i")
        until(page, "document.querySelector('#level').textContent.includes('INVERTED')")
        assert np.abs(255 - settled(page) - original)[inside].mean() < 2
        for change in ("i", "2", "+", "+", "i"):
            page.keyboard.press(change)
        wait_for(page, lambda: level(page)["zoom"] > 1.5 and level(page)["W"] < 4096)
        page.keyboard.press("r")
        wait_for(page, lambda: level(page) == {"W": 4096, "L": 2048, "zoom": 1})
        assert np.abs(settled(page) - original).mean() < 0.5
        assert "INVERTED" not in page.inner_text("#level")

    def test_a_drag_changes_the_window_and_keeps_the_polarity(self, server, page, studies):
        open_study(page, server, studies[2])
        before, told = picture_only(page), level(page)
        box = page.locator("#viewport").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x - 40, y, steps=8)
        page.mouse.up()
        wait_for(page, lambda: level(page) != told)
        after = settled(page)
        assert np.abs(after - before).mean() > 1
        assert np.corrcoef(after.ravel(), before.ravel())[0, 1] > 0.8

    def test_presets_stretch_what_they_are_for(self, server, page, studies):
        open_study(page, server, studies[1])
        widths = [level(page)["W"]]
        for key in "231":
            page.keyboard.press(key)
            wait_for(page, lambda: level(page)["W"] != widths[-1], f"key {key}")
            widths.append(level(page)["W"])
        assert widths[0] == widths[3] == 4096
        assert max(widths[1:3]) < 4096

    def test_keys_zoom_and_shift_drag_pans(self, server, page, studies):
        open_study(page, server, studies[1])
        box = page.locator("#viewport").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.keyboard.press("+")
        wait_for(page, lambda: level(page)["zoom"] == 1.25)
        before, told = settled(page), level(page)
        page.mouse.move(x, y)
        page.keyboard.down("Shift")
        page.mouse.down()
        page.mouse.move(x + 30, y + 20, steps=6)
        page.mouse.up()
        page.keyboard.up("Shift")
        wait_for(page, lambda: not np.array_equal(picture_only(page), before))
        moved = settled(page)
        assert level(page) == told
        found, _ = cv2.phaseCorrelate(before, moved)
        assert found == pytest.approx((30, 20), abs=2)

    def test_the_images_of_a_study_are_chosen_by_key(self, server, page):
        body = phantom.make(9, size=SIZE)
        study = server.send(phantom.dicom(body), "9.dcm")
        lateral = phantom.make(9, view="LATERAL", size=SIZE)
        assert server.send(phantom.dicom(lateral, number=2), "9-lateral.dcm") == study
        open_study(page, server, study)
        assert page.locator("[data-image]").count() == 2
        first = page.evaluate("document.body.dataset.shown")
        frontal = picture_only(page)
        page.keyboard.press("]")
        until(page, f"document.body.dataset.shown && document.body.dataset.shown !== '{first}'")
        assert np.abs(settled(page) - frontal).mean() > 5
        assert page.locator('[data-image][aria-pressed="true"]').inner_text().endswith("LAT")


class TestList:
    """Orders, filters, search and claims of the worklist, as hands and keys use them."""

    def shown(self, page) -> list[str]:
        return page.evaluate("[...document.querySelectorAll('#rows tr[data-study]')].map(row => row.dataset.study)")

    def test_a_search_narrows_the_list_and_is_in_no_address(self, server, page, studies):
        page.goto(server.url + "/")
        until(page, "document.querySelector('#live').textContent === 'live'")
        name = server.api.get(f"/studies/{studies[2]}").json()["patient_name"]
        page.keyboard.press("/")
        page.keyboard.type(name.upper())
        wait_for(page, lambda: self.shown(page) == [studies[2]], "the search")
        assert "hantom" not in page.url
        page.keyboard.press("Escape")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/studies/{studies[2]}")
        page.go_back()
        wait_for(page, lambda: self.shown(page) == [studies[2]], "the search after coming back")
        page.fill("#search", "")
        wait_for(page, lambda: len(self.shown(page)) > 1, "the whole list")

    def test_a_heading_sorts_by_its_column_and_back(self, server, page, studies):
        page.goto(server.url + "/")
        for way, descending in (("ascending", False), ("descending", True)):
            page.get_by_role("columnheader", name="Age").get_by_role("link").click()
            page.wait_for_selector(f'th[aria-sort="{way}"]')
            query = {"sort": "age", "descending": descending, "limit": 50}
            wanted = [row["study"] for row in server.api.get("/worklist", params=query).json()["studies"]]
            wait_for(page, lambda wanted=wanted: self.shown(page) == wanted, way)

    def test_a_filter_is_kept_under_a_name(self, server, page, studies):
        page.goto(server.url + "/")
        page.get_by_text("Filter", exact=True).click()
        page.get_by_label("age from").fill("200")
        page.get_by_role("button", name="Show").click()
        page.wait_for_url("**age_from=200**")
        assert "finding=" not in page.url  # what is empty is not said
        assert self.shown(page) == []
        page.get_by_role("button", name="Keep this filter").click()
        page.get_by_label("Name").fill("very old")
        page.get_by_role("button", name="Keep", exact=True).click()
        page.wait_for_selector(".saved a")
        page.goto(server.url + "/")
        page.get_by_role("link", name="very old").click()
        page.wait_for_url("**age_from=200**")
        page.get_by_role("button", name="forget the filter very old").click()
        page.wait_for_selector(".saved a", state="detached")

    def test_a_study_is_claimed_released_and_handed_over_by_key(self, server, page, studies):
        secret = "a long enough pass phrase"
        made = server.api.post("/accounts", json={"name": "Dr Other", "role": "radiologist", "password": secret})
        assert made.status_code == 201, made.text
        study = server.send(phantom.dicom(phantom.make(21, size=SIZE)), "21.dcm")
        page.goto(server.url + "/?sort=arrived&down=1")
        until(page, "document.querySelector('#live').textContent === 'live'")
        row = page.locator(f'tr[data-study="{study}"]')

        def reader() -> str | None:
            return server.api.get(f"/studies/{study}").json()["claimed_by"]

        row.focus()
        page.keyboard.press("c")
        wait_for(page, lambda: reader() == "operator")
        wait_for(page, lambda: row.locator(".reader").inner_text().startswith("you"))
        page.keyboard.press("c")
        wait_for(page, lambda: reader() is None)
        wait_for(page, lambda: row.locator('[data-do="claim"]').count() == 1)
        page.keyboard.press("o")
        page.wait_for_selector("dialog#hand-over[open]")
        page.locator("#reader").select_option("Dr Other")
        page.get_by_role("button", name="Hand over", exact=True).click()
        wait_for(page, lambda: reader() == "Dr Other")
        wait_for(page, lambda: "from operator" in row.locator(".reader").inner_text())


class TestHeatmap:
    def overlay(self, page) -> np.ndarray:
        """Return the overlay's opacity, 0 to 255, float [H, W], in CSS px."""
        address = page.evaluate("document.querySelector('#overlay').toDataURL('image/png')")
        content = np.frombuffer(base64.b64decode(address.split(",")[1]), np.uint8)
        return cv2.imdecode(content, cv2.IMREAD_UNCHANGED)[..., 3].astype(float)

    def test_it_is_off_first_and_never_part_of_the_picture(self, server, page, studies):
        open_study(page, server, studies[1])
        original = picture_only(page)
        assert not self.overlay(page).any()
        assert not page.locator("#legend").is_visible()
        page.keyboard.press("h")
        page.wait_for_selector("#legend:not([hidden])")
        wait_for(page, lambda: self.overlay(page).any())
        assert np.array_equal(picture_only(page), original)
        page.keyboard.press("h")
        page.wait_for_selector("#legend", state="hidden")
        assert not self.overlay(page).any()

    def test_its_peak_lies_where_the_map_says_also_after_zoom_and_pan(self, server, page, studies):
        open_study(page, server, studies[2])
        page.keyboard.press("h")
        page.wait_for_selector("#legend:not([hidden])")
        image = page.evaluate("document.body.dataset.shown")
        chosen = page.locator('.finding[aria-selected="true"]')
        query = {"model": chosen.get_attribute("data-model"), "finding": chosen.get_attribute("data-finding")}
        heat = server.api.get(f"/images/{image}/heatmap", params=query).json()
        values = np.array(heat["values"]).reshape(heat["rows"], heat["columns"])
        row, column = np.unravel_index(values.argmax(), values.shape)
        left, top, width, height = heat["box"]
        x = left + width * (column + 0.5) / heat["columns"]
        y = top + height * (row + 0.5) / heat["rows"]
        for zoom in (1, 1.25, 1.56):
            if zoom > 1:
                page.keyboard.press("+")
                wait_for(page, lambda zoom=zoom: level(page)["zoom"] == zoom)
            alpha = self.overlay(page)
            side = min(alpha.shape) * zoom
            expected = (alpha.shape[1] / 2 + (x - 0.5) * side, alpha.shape[0] / 2 + (y - 0.5) * side)
            if 0 < expected[0] < alpha.shape[1] and 0 < expected[1] < alpha.shape[0]:
                at = alpha[int(expected[1]), int(expected[0])]
                assert at > 0.97 * alpha.max()

    def test_its_opacity_is_the_readers_choice(self, server, page, studies):
        open_study(page, server, studies[1])
        page.keyboard.press("h")
        page.wait_for_selector("#legend:not([hidden])")
        before = self.overlay(page).max()
        page.locator("#opacity").fill("20")
        assert self.overlay(page).max() == pytest.approx(before / 3, abs=4)


class TestReview:
    def test_agree_and_sign_by_keys_alone(self, server, page, studies):
        open_study(page, server, studies[4])
        first = page.locator('.finding[aria-selected="true"]').get_attribute("data-finding")
        page.keyboard.press("a")
        page.keyboard.press("j")
        second = page.locator('.finding[aria-selected="true"]').get_attribute("data-finding")
        page.keyboard.press("d")
        page.keyboard.press("y")
        page.keyboard.press("m")
        page.keyboard.type("seen")
        page.keyboard.press("Escape")
        until(page, "document.querySelector('#kept').textContent === 'Saved'")
        draft = server.api.get(f"/studies/{studies[4]}").json()["reviews"]
        assert [review["state"] for review in draft] == ["draft"]
        page.keyboard.press("Enter")
        page.wait_for_selector('body[data-signed="true"]')
        found = server.api.get(f"/studies/{studies[4]}").json()
        assert found["status"] == "reviewed"
        (review,) = found["reviews"]
        assert review["state"] == "signed"
        assert {a["finding"]: a["answer"] for a in review["findings"]} == {first: "agree", second: "disagree"}
        assert (review["model_verdict"], review["note"]) == ("right", "seen")
        page.keyboard.press("Tab")
        page.wait_for_url(lambda address: "/studies/" in address and studies[4] not in address)

    def test_a_study_without_an_answer_needs_a_second_enter(self, server, page, studies):
        open_study(page, server, studies[5])
        page.keyboard.press("Enter")
        assert "Enter again" in page.inner_text("#message")
        assert server.api.get(f"/studies/{studies[5]}").json()["status"] != "reviewed"
        page.keyboard.press("Enter")
        page.wait_for_selector('body[data-signed="true"]')

    def test_a_study_that_another_reads_can_be_looked_at_only(self, server, session):
        study = server.send(phantom.dicom(phantom.make(10, size=SIZE)), "10.dcm")
        assert server.api.post(f"/studies/{study}/claim").status_code == 200
        with watched(session, server.url, allow="409") as page:
            open_study(page, server, study)
            until(page, "document.querySelector('#message').textContent.includes('claimed by modality')")
            page.keyboard.press("a")
            assert page.locator('.finding[data-answer="agree"]').count() == 0
            page.keyboard.press("Enter")
            assert server.api.get(f"/studies/{study}").json()["reviews"] == []

    def test_a_finding_that_no_model_named_is_added(self, server, page):
        study = server.send(phantom.dicom(phantom.make(11, size=SIZE)), "11.dcm")
        open_study(page, server, study)
        page.keyboard.press("f")
        page.keyboard.type("Pneumoperitoneum")
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        page.wait_for_selector('body[data-signed="true"]')
        (review,) = server.api.get(f"/studies/{study}").json()["reviews"]
        assert review["findings"] == [{"finding": "Pneumoperitoneum", "answer": "added"}]

    def test_what_arrives_meanwhile_is_told_and_shown_on_demand(self, server, page):
        study = server.send(phantom.dicom(phantom.make(13, size=SIZE)), "13.dcm")
        open_study(page, server, study)
        lateral = phantom.make(13, view="LATERAL", size=SIZE)
        assert server.send(phantom.dicom(lateral, number=2), "13-lateral.dcm") == study
        until(page, "document.querySelector('#message').textContent.includes('something new')")
        assert page.locator("[data-image]").count() == 1
        page.keyboard.press("g")
        page.locator("[data-image]").nth(1).wait_for()

    def test_what_arrived_unseen_is_shown_before_it_is_signed(self, server, session):
        study = server.send(phantom.dicom(phantom.make(14, size=SIZE)), "14.dcm")
        with watched(session, server.url, allow="409") as page:
            open_study(page, server, study)
            page.keyboard.press("a")
            page.keyboard.press("m")
            page.keyboard.type("every typed word")
            page.keyboard.press("Escape")
            lateral = phantom.make(14, view="LATERAL", size=SIZE)
            assert server.send(phantom.dicom(lateral, number=2), "14-lateral.dcm") == study
            late = server.api.get(f"/studies/{study}").json()["images"][1]["image"]
            page.keyboard.press("Enter")
            until(page, "image => document.body.dataset.shown === image", late)
            assert "Not signed" in page.inner_text("#message")
            assert page.locator("[data-image]").count() == 2
            assert page.locator("#note").input_value() == "every typed word"
            assert page.locator('.finding[data-answer="agree"]').count() == 1
            assert server.api.get(f"/studies/{study}").json()["reading"] == "draft"
            page.keyboard.press("Enter")
            page.wait_for_selector('body[data-signed="true"]')
            (review,) = server.api.get(f"/studies/{study}").json()["reviews"]
            assert (review["state"], review["note"]) == ("signed", "every typed word")

    def test_opening_claims_and_leaving_gives_back(self, server, page):
        study = server.send(phantom.dicom(phantom.make(12, size=SIZE)), "12.dcm")
        open_study(page, server, study)
        wait_for(page, lambda: server.api.get(f"/studies/{study}").json()["status"] == "claimed")
        page.keyboard.press("w")
        page.wait_for_url(server.url + "/")
        wait_for(page, lambda: server.api.get(f"/studies/{study}").json()["status"] != "claimed")


@pytest.mark.skipif(
    not (resources.files("wetread") / "shipped" / "phantom").is_dir(), reason="needs the shipped model `phantom`"
)
def test_screenshots(chromium, tmp_path):
    """Show a department of phantoms read by the shipped model; `SCREENSHOTS=docs/images` keeps the pictures."""
    target = Path(os.environ.get("SCREENSHOTS", tmp_path)).resolve()
    target.mkdir(parents=True, exist_ok=True)
    (tmp_path / "data").mkdir()
    with serving(tmp_path, "phantom") as server:
        given = {3: ["Pneumothorax"], 6: ["Pleural Effusion"], 11: ["Edema"]}  # the others are drawn
        studies = {}
        for seed in range(1, 15):
            view = "AP" if seed % 5 == 0 else "PA"
            body = phantom.make(seed, size=512, view=view, findings=given.get(seed))
            priority = "urgent" if seed == 9 else "routine"
            studies[seed] = server.send(phantom.dicom(body), f"{seed}.dcm", priority=priority)
            if seed == 3:
                lateral = phantom.make(seed, size=512, view="LATERAL", findings=given[3])
                server.send(phantom.dicom(lateral, number=2), "lateral.dcm")
        server.send(phantom.dicom(phantom.make(40, size=512, view="LATERAL")), "alone.dcm")
        context = chromium.new_context()
        sign_in(context, server)
        for size in ((1366, 768), (1920, 1080)):
            name = f"{size[0]}x{size[1]}.png"
            with watched(context, server.url) as page:
                page.set_viewport_size({"width": size[0], "height": size[1]})
                page.goto(server.url + "/")
                until(page, "document.querySelector('#live').textContent === 'live'")
                page.keyboard.press("j")
                page.screenshot(path=target / f"worklist-{name}")
                open_study(page, server, studies[3])
                page.screenshot(path=target / f"study-{name}")
                page.keyboard.press("h")
                page.wait_for_selector("#legend:not([hidden])")
                page.wait_for_timeout(300)
                page.screenshot(path=target / f"heatmap-{name}")
        context.close()
    assert len(list(target.glob("*.png"))) >= 6


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
