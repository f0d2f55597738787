"""A `wetread serve` process, the system's Chromium, and what tests of pages ask of both.

Every page is watched: an error on the console, an exception, a breach of the content policy, or a request that
leaves the server fails the test.
"""

from __future__ import annotations

import base64
import io
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pydicom
import pytest

from wetread.findings import CHEXPERT
from wetread.radiograph import phantom

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
# What a page complains of while the server is away.
LOST = r"ERR_CONNECTION|ERR_EMPTY|ERR_INCOMPLETE|ERR_NETWORK|Failed to load|Failed to fetch"
SIZE = 320
PATIENTS = {1: ["Pneumothorax"], 2: ["Pleural Effusion"], 3: [], 4: ["Fracture"], 5: ["Cardiomegaly"], 6: []}

needed = [
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install -y chromium"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="needs playwright, of the extra dev"),
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
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def send(self, content: bytes, name: str, **fields: str) -> str:
        answer = self.api.post("/studies?wait=30", files=[("files", (name, content))], data=fields)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["studies"][0]["study"])

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def stop(self) -> None:
        self.api.close()
        self.end()


def written(film: pydicom.Dataset) -> bytes:
    """Return the file of a dataset."""
    content = io.BytesIO()
    film.save_as(content)
    return content.getvalue()


def free_port() -> int:
    """Return a port that nobody is given by chance while the server is down: below those that the system hands out."""
    for port in random.SystemRandom().sample(range(15_000, 30_000), 200):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


@contextmanager
def serving(folder: Path, models: str, port: int = 0, **settings: str) -> Iterator[Server]:
    """Serve the data in `folder`/data for a while."""
    (folder / "data").mkdir(exist_ok=True)
    server = Server(folder / "data", models, port, **settings)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def serving_tiny(folder: Path, port: int = 0, **settings: str) -> Iterator[Server]:
    """Serve a package whose scores have a closed form, so that there are findings and maps whatever is shipped."""
    import tiny_package  # of the tests alone; the pictures of the tour are taken with this module, too

    package = tiny_package.write(folder / "tiny", CHEXPERT, population="phantom")
    with serving(folder, str(package.path), port, **settings) as server:
        yield server


@contextmanager
def chromium(*flags: str) -> Iterator[Any]:
    """Run the system's Chromium."""
    with pytest.importorskip("playwright.sync_api").sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *flags])
        yield browser
        browser.close()


@contextmanager
def signed_in(browser: Any, server: Server, width: int = 1024, height: int = 640, **more: Any) -> Iterator[Any]:
    """Sign in by the one-time link; give the browser's context, which keeps the session and the cache."""
    context = browser.new_context(viewport={"width": width, "height": height}, **more)
    sign_in(context, server)
    yield context
    context.close()


def sign_in(context: Any, server: Server) -> None:
    """Use up the one-time link."""
    context.add_init_script(
        "addEventListener('securitypolicyviolation', e => console.error('POLICY', e.violatedDirective, e.blockedURI))"
    )
    page = context.new_page()
    page.goto(server.url + server.login)
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url(server.url + "/")
    page.close()


def log_in(page: Any, name: str, password: str) -> None:
    """Type name and password into the login page, as hands without a mouse do."""
    page.locator("[name=name]").fill(name)
    page.keyboard.press("Tab")
    page.keyboard.type(password)
    page.keyboard.press("Enter")


@contextmanager
def watched(context: Any, url: str, allow: str = r"(?!)") -> Iterator[Any]:
    """Give a page; fail when anything went wrong on it, save errors that match `allow`."""
    wrong: list[str] = []
    page = context.new_page()

    def console(message: Any) -> None:
        if message.type == "error" and not re.search(allow, message.text):
            wrong.append(message.text)

    def request(request: Any) -> None:
        if not request.url.startswith((url, "data:", "blob:")):
            wrong.append(f"left: {request.url}")

    def raised(error: Any) -> None:
        if not re.search(allow, str(error)):
            wrong.append(f"exception: {error}")

    page.on("pageerror", raised)
    page.on("console", console)
    page.on("request", request)
    page.set_default_timeout(60_000)
    yield page
    page.close()
    assert not wrong, wrong


def send_patients(server: Server) -> dict[int, str]:
    """Send the phantoms of `PATIENTS`, every second one as MONOCHROME1; return seed to study."""
    return {
        seed: server.send(
            phantom.dicom(phantom.make(seed, size=SIZE, findings=findings), inverted=bool(seed % 2)), f"{seed}.dcm"
        )
        for seed, findings in PATIENTS.items()
    }


def wait_for(page: Any, condition: Callable[[], object], what: str = "the condition", seconds: float = 60.0) -> None:
    """Return once the condition holds; fail when it does not within `seconds`."""
    for _ in range(int(seconds / 0.1)):
        if condition():
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{what} did not come to hold")


def until(page: Any, expression: str, arg: object = None) -> None:
    """Wait until a JavaScript expression holds; playwright's own way needs eval, which the content policy forbids."""

    def holds() -> object:
        try:
            return page.evaluate(expression, arg)
        except Exception as error:  # of playwright, which may be absent
            if "context was destroyed" not in str(error):  # between two pages neither holds
                raise
            return False

    wait_for(page, holds, expression)


def open_study(page: Any, server: Server, study: str) -> None:
    """Open a study and wait until its picture stands still."""
    page.goto(f"{server.url}/studies/{study}")
    until(page, "document.body.dataset.shown")
    settled(page)


def level(page: Any) -> dict[str, float]:
    """Return window, level and zoom as the page says them; it says them after each drawing."""
    found = re.search(r"W (\d+) +L (-?\d+) +zoom ([\d.]+)×", page.inner_text("#level"))
    assert found is not None
    return dict(zip(("W", "L", "zoom"), map(float, found.groups()), strict=True))


def settled(page: Any) -> np.ndarray:
    """Return the picture once it, and any beside it, has stopped changing."""
    last = pictures(page)
    for _ in range(100):
        page.wait_for_timeout(200)
        now = pictures(page)
        if len(now) == len(last) and all(map(np.array_equal, now, last)):
            return now[0]
        last = now
    raise AssertionError("the picture does not come to rest")


def picture_only(page: Any) -> np.ndarray:
    """Return the pixels of the radiograph's own canvas, without what lies over it, float [H, W]."""
    return pictures(page)[0]


def pictures(page: Any) -> list[np.ndarray]:
    """Return the same of all panes that lie side by side."""
    addresses = page.evaluate("[...document.querySelectorAll('.viewport canvas')].map(c => c.toDataURL('image/png'))")
    contents = [np.frombuffer(base64.b64decode(address.split(",")[1]), np.uint8) for address in addresses]
    return [np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR)).astype(float).mean(2) for content in contents]


def fitted(pixels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a picture as a viewer shows it whole: scaled to fit, centred, black around."""
    scale = min(shape[0] / pixels.shape[0], shape[1] / pixels.shape[1])
    centre = [(shape[i] - scale * pixels.shape[i]) / 2 + 0.5 * scale - 0.5 for i in (0, 1)]
    matrix = np.array([[scale, 0, centre[1]], [0, scale, centre[0]]])
    return cv2.warpAffine(pixels.astype(np.float32), matrix, (shape[1], shape[0]), flags=cv2.INTER_LINEAR)


def reference(server: Server, study: str) -> np.ndarray:
    """Return a study's first image as the server renders it for a picture of its own, uint8 [H, W]."""
    image = server.api.get(f"/studies/{study}").json()["images"][0]["image"]
    content = server.api.get(f"/images/{image}/preview.png?side=1024").content
    return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE))
