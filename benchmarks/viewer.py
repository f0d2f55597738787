"""From a key to the picture: the first image of a study, and the next study, in the system's Chromium.

    python -m benchmarks viewer [--studies 20] [--side 3000] [--read 2] [--software]

A `wetread serve` process without models holds that many studies of one DICOM each (12 bits, uncompressed, phantoms
drawn larger). A reader opens studies from the worklist, then signs and goes on with `n`, after `--read` seconds and at
once, when nothing could be fetched ahead. The time ends when the new study's picture is drawn with all its values.
Without `--software` Chromium may use a graphics card, where there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
from playwright.sync_api import Error, Page, sync_playwright
from pydicom import dcmread

from wetread.radiograph import phantom

SOFTWARE = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist")
QUIET = ("--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync")
# Notes when a key was pressed, and when the picture of a study other than the one before stood on screen.
WATCH = """
const now = () => performance.timeOrigin + performance.now();
addEventListener('keydown', () => sessionStorage.setItem('pressed', now()), {capture: true});
new MutationObserver(() => {
  const {drawn, study} = document.body?.dataset ?? {};
  if (!drawn || drawn === sessionStorage.getItem('drawn')) return;
  sessionStorage.setItem('drawn', drawn);
  requestAnimationFrame(() => sessionStorage.setItem('took', now() - sessionStorage.getItem('pressed')));
}).observe(document, {subtree: true, attributes: true, attributeFilter: ['data-drawn'], childList: true});
"""

TAKE = "() => { const took = sessionStorage.getItem('took'); sessionStorage.removeItem('took'); return took; }"


def radiograph(seed: int, side: int) -> bytes:
    """Return a phantom's DICOM file with `side` rows."""
    film = dcmread(io.BytesIO(phantom.dicom(phantom.make(seed, size=256), patient=f"bench-{seed}")))
    small = film.pixel_array.astype(np.float32)
    shape = (round(side * small.shape[1] / small.shape[0]), side)
    large = cv2.resize(small, shape, interpolation=cv2.INTER_CUBIC)
    large += np.random.default_rng(seed).normal(0, 8, large.shape).astype(np.float32)
    pixels = np.clip(np.rint(large), 0, 4095).astype(np.uint16)
    film.Rows, film.Columns = pixels.shape
    film.PixelData = pixels.tobytes()
    stream = io.BytesIO()
    film.save_as(stream)
    return stream.getvalue()


def took(page: Page) -> float:
    """Wait for the picture that was asked for; return how long it took, in ms."""
    for _ in range(3000):
        with contextlib.suppress(Error):  # between two pages
            value = page.evaluate(TAKE)
            if value is not None:
                return float(value)
        page.wait_for_timeout(20)
    raise SystemExit("benchmarks viewer: no picture within 30 s")


def percentiles(times: Sequence[float]) -> str:
    """Return median, 95th percentile and number."""
    ordered = sorted(times)
    high = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    return f"{statistics.median(ordered):.0f} | {high:.0f} | {len(ordered)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--side", type=int, default=3000, help="rows of each DICOM")
    parser.add_argument("--software", action="store_true", help="draw without a graphics card")
    parser.add_argument("--read", type=float, default=2.0, help="seconds that a reader looks at a study")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("benchmarks viewer: needs Chromium: apt-get install -y chromium")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WETREAD_")} | {"WETREAD_MODELS": "none"}
    wetread = [sys.executable, "-m", "wetread"]
    with tempfile.TemporaryDirectory() as folder:
        data = ["--data", str(Path(folder) / "data")]
        (Path(folder) / "data").mkdir()
        common: dict[str, Any] = {"env": environment, "cwd": folder, "text": True, "stdout": subprocess.PIPE}
        server = subprocess.Popen([*wetread, "serve", *data, "--port", "0"], stderr=subprocess.DEVNULL, **common)
        try:
            assert server.stdout is not None
            found = re.search(r"(http://[^/]+)(/login\S+)", server.stdout.readline())
            assert found is not None
            made = subprocess.run(
                [*wetread, "token", "create", "bench", "--role", "administrator", *data], check=True, **common
            )
            send(found[1], made.stdout.strip(), options.studies, options.side)
            read(chromium, found[1], found[2], options)
        finally:
            server.terminate()
            server.wait(20)
            assert server.stdout is not None
            server.stdout.close()


def send(url: str, token: str, studies: int, side: int) -> None:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60, trust_env=False) as http:
        for seed in range(1, studies + 1):
            content = radiograph(seed, side)
            http.post("/api/v1/studies", files=[("files", (f"{seed}.dcm", content))]).raise_for_status()


def read(chromium: str, url: str, login: str, options: argparse.Namespace) -> None:
    flags = [*QUIET, *(SOFTWARE if options.software else ())]
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=chromium, args=flags)
        context = browser.new_context(viewport={"width": 1920, "height": 1080})
        page = context.new_page()
        page.goto(url + login)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(url + "/")
        context.add_init_script(WATCH)
        rows: dict[str, list[float]] = {"from the worklist": [], "next, after reading": [], "next, at once": []}
        for round_ in range(max(2, options.studies // 4)):
            page.goto(url + "/")
            page.locator("#rows tr[data-study]").nth(round_ % options.studies).focus()
            page.keyboard.press("Enter")
            rows["from the worklist"].append(took(page))
        half = (options.studies - 1) // 2
        for pause, name, count in ((options.read, "next, after reading", half), (0.0, "next, at once", half)):
            for _ in range(count):
                page.wait_for_timeout(1000 * pause)
                page.keyboard.press("0")
                page.keyboard.press("Enter")
                page.wait_for_selector('body[data-signed="true"]')
                page.keyboard.press("n")
                rows[name].append(took(page))
        browser.close()
    print(f"| {options.side} px, from key to picture | p50 ms | p95 ms | n |\n|---|---|---|---|")
    for name, times in rows.items():
        print(f"| {name} | {percentiles(times)} |")


if __name__ == "__main__":
    main()
