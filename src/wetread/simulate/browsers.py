"""Pages opened in a real browser as on a workstation, a tablet and a slow link: how soon the first image stands.

Chromium is driven by Playwright (the extra `browser`). Each time is from the start of the navigation: for the list to
its first row, for a study to the moment at which its first picture is drawn with all its values. Whatever a page
complains of counts as an error: an exception, an error on its console, an answer from 400 on, a request that fails.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from wetread.errors import ClinicError, Code, ConfigError, DeniedError, hide

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Response

_FLAGS = [
    "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--no-sandbox",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
_ROW = "#rows tr[data-study]"
_LOOK_MS = 1000
_BLANK = {Code.UNREADABLE, Code.TOO_LARGE}  # nobody can show what no one can decode
_DRAWN = "() => Boolean(document.body?.dataset.drawn)"


@dataclass(frozen=True)
class Profile:
    """How pages are opened.

    Attributes
    ----------
    width, height : int
        Of the window, in CSS pixels.
    scale : float
        Device pixels in a CSS pixel.
    touch : bool
    link : (float, float, float), optional
        Download and upload in Mbit/s and latency in ms, by the browser's own throttling.
    """

    width: int
    height: int
    scale: float = 1.0
    touch: bool = False
    link: tuple[float, float, float] | None = None


PROFILES = {
    "workstation": Profile(1920, 1080),
    "tablet": Profile(1180, 820, 2.0, touch=True),
    "slow": Profile(1366, 768, link=(1.6, 0.75, 150.0)),  # a poor mobile connection
}


@dataclass
class Result:
    """What one profile gave: times in s, and complaints."""

    lists: list[float] = field(default_factory=list)
    studies: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    leaving: bool = False  # what a page complains of while it is torn down reaches no reader

    def complain(self, what: str) -> None:
        """Note what the page complains of."""
        if not self.leaving:
            self.errors.append(what)

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON, times in ms."""
        return {
            "opened": len(self.studies),
            "list_ms": _percentiles(self.lists),
            "first_image_ms": _percentiles(self.studies),
            "errors": len(self.errors),
            "first_errors": self.errors[:5],
        }


def _percentiles(times: Sequence[float]) -> dict[str, float] | None:
    if not times:
        return None
    return {f"p{share}": round(1000 * float(np.percentile(times, share)), 1) for share in (50, 95)}


def run(
    url: str,
    credentials: Mapping[str, str],
    *,
    profiles: Sequence[str] = tuple(PROFILES),
    times: int = 5,
    timeout_s: float = 60.0,
    chromium: str = "",
) -> dict[str, Any]:
    """Open the worklist and a study so many times in each profile.

    Parameters
    ----------
    url : str
    credentials : mapping
        `name` and `password` of an account, or the `code` of a login link.
    profiles : sequence of str
        Of `PROFILES`.
    times : int
        How often each is opened.
    timeout_s : float
        After which a page that shows nothing counts as an error.
    chromium : str
        Path of the browser; by default the system's, else Playwright's own.

    Returns
    -------
    dict
        ``at``, when it began, and ``profiles``: name → figures.

    Raises
    ------
    ConfigError
        For an unknown profile or a time that is none, or without a browser.
    DeniedError, ClinicError
        When the server does not let us in, or has no study to open.
    """
    if unknown := [name for name in profiles if name not in PROFILES]:
        raise ConfigError(f"profile {unknown[0]!r}: not one of {', '.join(PROFILES)}")
    if not 0.1 <= timeout_s <= 3600:
        raise ConfigError(f"timeout = {timeout_s}: must be 0.1 to 3600 s")
    from playwright.sync_api import Error, sync_playwright

    began = datetime.now(UTC)
    path = chromium or shutil.which("chromium") or shutil.which("google-chrome") or None
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        except Error as error:
            raise ConfigError(
                f"no browser ({error.message.splitlines()[0][:120]}); apt-get install chromium, or give --chromium"
            ) from None
        try:
            state = _signed_in(browser, url, credentials)
            studies = _studies(browser, url, state, timeout_s)
            found = {
                name: _profile(browser, url, state, studies, PROFILES[name], times, timeout_s).to_dict()
                for name in profiles
            }
            return {"at": began.isoformat(timespec="seconds"), "profiles": found}
        finally:
            browser.close()


def _signed_in(browser: Browser, url: str, credentials: Mapping[str, str]) -> Any:
    """Log in by the form of the login page; return the cookies of the session."""
    from playwright.sync_api import Error

    context = browser.new_context()
    try:
        answer = context.request.post(f"{url}/login", form=dict(credentials), max_redirects=0)
        if answer.status != 303:
            raise DeniedError(f"{hide(url)}: not let in (HTTP {answer.status}); give an account, or a fresh login link")
        return context.storage_state()
    except Error as error:
        reason = error.message.splitlines()[0][:120]
        raise ClinicError(f"{hide(url)}: no server there ({reason}); start `wetread serve`") from None
    finally:
        context.close()


def _studies(browser: Browser, url: str, state: Any, timeout_s: float) -> list[str]:
    """Return the unread studies that have a picture which can be shown, to begin with those most urgent."""
    context, until = browser.new_context(storage_state=state), time.monotonic() + timeout_s
    try:
        while True:
            answer = context.request.get(f"{url}/api/v1/worklist", params={"limit": 50})
            rows = answer.json()["studies"] if answer.ok else []
            if found := [row["study"] for row in rows if row["image_count"] and row["code"] not in _BLANK]:
                return found
            if time.monotonic() > until:
                raise ClinicError(
                    f"{hide(url)}: no unread study with a picture; `wetread simulate arrivals` sends some"
                )
            time.sleep(0.5)
    finally:
        context.close()


def _profile(
    browser: Browser, url: str, state: Any, studies: Sequence[str], profile: Profile, times: int, timeout_s: float
) -> Result:
    context = browser.new_context(
        storage_state=state,
        viewport={"width": profile.width, "height": profile.height},
        device_scale_factor=profile.scale,
        has_touch=profile.touch,
    )
    result = Result()
    try:
        page = context.new_page()
        _listen(page, result)
        if profile.link is not None:
            _throttle(context, page, profile.link)
        for number in range(times):
            _open(page, url, studies[number % len(studies)], result, timeout_s)
    finally:
        context.close()
    return result


def _listen(page: Page, result: Result) -> None:
    """Note whatever the page complains of; addresses without what may be a name in them."""

    def said(message: ConsoleMessage) -> None:
        unreadable = "status of 422" in message.text and _of_image(message.location["url"])
        if message.type == "error" and not unreadable:
            result.complain(f"console: {message.text[:120]}")

    def answered(answer: Response) -> None:
        if answer.status >= 400 and not (answer.status == 422 and _of_image(answer.url)):
            result.complain(f"HTTP {answer.status}: {urlsplit(answer.url).path}")

    page.on("pageerror", lambda error: result.complain(f"exception: {str(error)[:120]}"))
    page.on("console", said)
    page.on("response", answered)


def _of_image(url: str) -> bool:
    """Return whether an address is of a picture: 422 says that its file is broken, which is no fault of the page.

    A page fetches the next study ahead, whatever it is; what it does not show itself is missed anyway.
    """
    return urlsplit(url).path.startswith("/api/v1/images/")


def _throttle(context: BrowserContext, page: Page, link: tuple[float, float, float]) -> None:
    down, up, latency = link
    session = context.new_cdp_session(page)
    session.send("Network.enable")
    session.send(
        "Network.emulateNetworkConditions",
        {
            "offline": False,
            "latency": latency,
            "downloadThroughput": down * 1e6 / 8,
            "uploadThroughput": up * 1e6 / 8,
        },
    )


def _open(page: Page, url: str, study: str, result: Result, timeout_s: float) -> None:
    """Open the list, then a study of it."""
    from playwright.sync_api import Error

    wait = 1000 * timeout_s
    try:
        begun = time.perf_counter()
        page.goto(f"{url}/", wait_until="commit", timeout=wait)
        result.leaving = False
        page.wait_for_selector(_ROW, timeout=wait)
        result.lists.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        page.goto(f"{url}/studies/{study}", wait_until="commit", timeout=wait)
        page.wait_for_function(_DRAWN, timeout=wait)
        result.studies.append(time.perf_counter() - begun)
        page.wait_for_timeout(_LOOK_MS)  # what comes after the first image may complain, too
        result.leaving = True
    except Error as error:
        result.errors.append(f"{type(error).__name__}: {error.message.splitlines()[0][:120]}")
        with suppress(Error):  # what was under way does not disturb the next one
            result.leaving = True
            page.goto("about:blank")


def table(found: Mapping[str, Any]) -> str:
    """Return what `run` found in words, a line for each profile."""

    def p95(times: Mapping[str, float] | None) -> str:
        return f"within {times['p95']:g} ms" if times else "never"

    return "\n".join(
        f"{name}: {each['opened']} opened; 95 % have the list {p95(each['list_ms'])}, the first image "
        f"{p95(each['first_image_ms'])}; {each['errors']} errors"
        + "".join(f"\n  {what}" for what in each["first_errors"])
        for name, each in found["profiles"].items()
    )


def code_of(link: str) -> tuple[str, dict[str, str]]:
    """Return the address and the credentials of a login link as `wetread serve` prints it.

    Raises
    ------
    ConfigError
        When it is none.
    """
    parts = urlsplit(link)
    codes = parse_qs(parts.query).get("code", [])
    if not codes or not parts.netloc:
        raise ConfigError("login: not the link that `wetread serve` prints, with /login?code=")
    return f"{parts.scheme}://{parts.netloc}", {"code": codes[0]}
