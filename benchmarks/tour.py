"""Pictures of each page in both themes, for docs/tour.md: a department of phantoms, read by the shipped model.

    python -m benchmarks tour [docs/images/tour] [--only study heatmap] [--theme dark]

A `wetread serve` process holds phantoms that wait, claimed, handed over, overdue and critical ones among them, and
behind them the drawn history of `benchmarks.worklist` and `benchmarks.pages`, so that the figures are of something.
Each picture becomes a WebP of at most 60 kB.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from PIL import Image

from benchmarks import pages, worklist
from tests.browser import Server, chromium, free_port, log_in, serving, settled, until, watched
from wetread.clinic import claims, keys, store
from wetread.clinic.store import Store
from wetread.radiograph import phantom

SITE, PASSWORD = "default", "a long enough pass phrase"
READER, COLLEAGUE = "Dr Night", "Dr Day"
WIDTH, HEIGHT = 1366, 768
MOST = 60_000  # bytes of a picture
HISTORY = 12_000  # studies of three years
# Seed: findings (None: as drawn), view, minutes since arrival, requester's priority.
WAITING: dict[int, tuple[list[str] | None, str, int, str]] = {
    3: (["Pneumothorax"], "PA", 4, "routine"),
    6: (["Pleural Effusion"], "PA", 17, "routine"),
    11: (["Edema"], "AP", 31, "routine"),
    9: (None, "AP", 9, "urgent"),
    12: (["Consolidation"], "PA", 52, "routine"),
    5: ([], "AP", 263, "routine"),
    2: ([], "PA", 12, "routine"),
    14: (["Cardiomegaly"], "PA", 26, "routine"),
    7: ([], "PA", 44, "routine"),
    10: ([], "AP", 61, "routine"),
    13: (["Fracture"], "PA", 78, "routine"),
    8: ([], "PA", 95, "routine"),
    40: ([], "LATERAL", 38, "routine"),
}
CHOSEN = 3


@dataclass
class Room:
    """A department that is open: its server, and the study that the pictures show."""

    server: Server
    study: str
    model: str


def furnish(server: Server) -> Room:
    """Fill a department that has just opened."""
    for name, role in ((READER, "administrator"), (COLLEAGUE, "radiologist"), ("Ms Engine", "engineer")):
        account = {"name": name, "role": role, "password": PASSWORD}
        server.api.post("/accounts", json=account).raise_for_status()
    model = next(m["id"] for m in server.api.get("/ai").json()["models"] if m["name"] == "phantom")
    server.end()  # it counts days that are over once, and keeps the figures
    database, now = Store.open(server.data), store.now()
    try:
        remember(database, model)  # before anything waits: what waits is left as the service makes it
        server.start(int(server.url.rpartition(":")[2]))
        before = phantom.make(CHOSEN, size=512, findings=[])
        prior = server.send(phantom.dicom(before, study="0", acquired_at=f"{now:%Y}0104093000"), "prior.dcm")
        server.api.post(f"/studies/{prior}/reviews", json={"state": "signed", "normal": True}).raise_for_status()
        studies = {}
        for seed, (findings, view, minutes, asked) in WAITING.items():
            body = phantom.make(seed, size=512, view=view, findings=findings)  # type: ignore[arg-type]
            at = f"{now - timedelta(minutes=minutes + 3):%Y%m%d%H%M%S}"
            studies[seed] = server.send(phantom.dicom(body, acquired_at=at), f"{seed}.dcm", priority=asked)
            if seed == CHOSEN:
                lateral = phantom.make(seed, size=512, view="LATERAL", findings=findings)
                server.send(phantom.dicom(lateral, number=2, acquired_at=at), "lateral.dcm")
        age(database, {studies[seed]: minutes for seed, (_, _, minutes, _) in WAITING.items()} | {prior: 460_000})
        claims.claim(database, SITE, studies[11], COLLEAGUE)
        claims.hand_over(database, SITE, studies[12], COLLEAGUE, READER)
    finally:
        database.close()
    return Room(server, studies[CHOSEN], model)


def age(database: Store, minutes: dict[str, int]) -> None:
    """Let studies have come so long ago."""
    now, table, image = store.now(), store.study, store.instance
    with database.write() as connection:
        for study, ago in minutes.items():
            row = connection.execute(sa.select(table).where(table.c.id == study)).one()
            back = now - timedelta(minutes=ago) - row.received_at
            came = {"received_at": row.received_at + back, "overdue_at": row.overdue_at + back}
            came["place"] = keys.place(came["received_at"])
            connection.execute(table.update().where(table.c.id == study).values(came))
            for each in connection.execute(sa.select(image).where(image.c.study == study)).all():
                at = each.received_at + back
                connection.execute(image.update().where(image.c.id == each.id).values(received_at=at))


def remember(database: Store, model: str) -> None:
    """Put the history in, as if the shipped model had seen all of it."""
    with database.write() as connection:
        connection.execute(store.study.insert(), [row | {"cautions": []} for row in worklist.studies(HISTORY, 0)])
    pages.more(database, store.now(), model, "phantom")


# ---------------------------------------------------------------------- what is shown


def address(path: str, shown: str = "main") -> Callable[[Any, Room], None]:
    """Return how to come to a page that needs nothing done on it."""

    def go(page: Any, room: Room) -> None:
        page.goto(room.server.url + path.format(study=room.study, model=room.model))
        page.wait_for_selector(shown)
        until(page, "[...document.querySelectorAll('figure.chart')].every(figure => figure.dataset.drawn)")

    return go


def listed(page: Any, room: Room) -> None:
    page.goto(room.server.url + "/")
    until(page, "document.querySelector('#live').textContent === 'live'")
    page.keyboard.press("j")


def upload(page: Any, room: Room) -> None:
    page.goto(room.server.url + "/")
    body = phantom.dicom(phantom.make(33, size=512))
    letter = {"name": "letter.txt", "mimeType": "text/plain", "buffer": b"Dear colleague"}
    page.set_input_files("#files", [{"name": "chest.dcm", "mimeType": "", "buffer": body}, letter])
    until(page, "document.querySelectorAll('#added li[data-state=received]').length === 2")
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")


def study(page: Any, room: Room) -> None:
    page.goto(f"{room.server.url}/studies/{room.study}")
    until(page, "document.body.dataset.shown")
    settled(page)


def heatmap(page: Any, room: Room) -> None:
    study(page, room)
    page.keyboard.press("h")
    page.wait_for_selector("#legend:not([hidden])")
    page.wait_for_timeout(500)


def beside(key: str) -> Callable[[Any, Room], None]:
    """Return how to come to two pictures side by side."""

    def go(page: Any, room: Room) -> None:
        study(page, room)
        page.keyboard.press(key)
        until(page, "document.querySelectorAll('.pane:not(.coming)').length === 2")
        settled(page)

    return go


def critical(page: Any, room: Room) -> None:
    study(page, room)
    page.keyboard.press("c")
    page.wait_for_selector("#communication[open]")


def help_(page: Any, room: Room) -> None:
    study(page, room)
    page.keyboard.press("?")
    page.wait_for_selector("#keys[open]")


def tried(page: Any, room: Room) -> None:
    page.goto(room.server.url + "/try")
    body = phantom.dicom(phantom.make(21, size=512, findings=["Pleural Effusion"]))
    page.set_input_files("#file", [{"name": "chest.dcm", "mimeType": "", "buffer": body}])
    page.wait_for_selector("#answer:not([hidden])")
    page.wait_for_timeout(500)


def rule(page: Any, room: Room) -> None:
    page.goto(room.server.url + "/settings/rule")
    text = page.input_value("#toml").replace('"Edema"', '"Edema", "Cardiomegaly"', 1)
    page.fill("#toml", text)
    page.get_by_role("button", name="Try", exact=True).click()
    page.wait_for_selector(".compared")
    page.evaluate("document.querySelector('form + h2').scrollIntoView()")


PICTURES: dict[str, Callable[[Any, Room], None]] = {
    "worklist": listed,
    "study": study,
    "history": address("/studies/{study}/history"),
    "report": address("/studies/{study}/report"),
    "heatmap": heatmap,
    "lateral": beside("b"),
    "prior": beside("p"),
    "critical": critical,
    "keys": help_,
    "try": tried,
    "quality": address("/quality"),
    "models": address("/models"),
    "model": address("/models/{model}"),
    "operations": address("/operations"),
    "deliveries": address("/deliveries"),
    "settings": address("/settings"),
    "users": address("/users"),
    "ai": address("/settings/ai"),
    "rule": rule,
    "upload": upload,  # what comes now stands in the list
}


def small(shot: bytes) -> bytes:
    """Return a screenshot as WebP, without loss where that is small enough, else as sharp as `MOST` allows."""
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    for quality in (None, 90, 82, 74, 66, 58, 50, 40):
        stream = io.BytesIO()
        picture.save(stream, "WEBP", method=6, **({"lossless": True} if quality is None else {"quality": quality}))
        if stream.tell() <= MOST:
            break
    return stream.getvalue()


def take(room: Room, browser: Any, target: Path, theme: str, only: list[str]) -> None:
    """Take the pictures of one theme."""
    context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT})
    with watched(context, room.server.url, allow="status of 4") as page:

        def keep(name: str) -> None:
            if not only or name in only:
                content = small(page.screenshot())
                (target / f"{name}-{theme}.webp").write_bytes(content)
                print(f"{name}-{theme}.webp {len(content) / 1000:.0f} kB", flush=True)

        page.goto(room.server.url + "/login")
        page.evaluate("theme => { document.documentElement.className = theme }", theme)
        keep("login")
        log_in(page, READER, PASSWORD)
        page.wait_for_url(room.server.url + "/")
        page.goto(room.server.url + "/settings")
        page.get_by_label(theme, exact=True).check()
        with page.expect_navigation():
            page.get_by_role("button", name="Keep").click()
        for name, come in PICTURES.items():
            if not only or name in only:
                come(page, room)
                keep(name)
    context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, nargs="?", default=Path("docs/images/tour"))
    parser.add_argument("--only", nargs="*", default=[], help="names of pictures, as `study`; all by default")
    parser.add_argument("--theme", choices=("dark", "light"), help="one theme only")
    options = parser.parse_args()
    options.target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        secret = Path(folder) / "secret"
        secret.write_text("swordfish")
        pager = f"http://127.0.0.1:9/pager#secret-file={secret}"  # which nobody answers
        with serving(Path(folder), "phantom", free_port(), WETREAD_OUTPUTS_WEBHOOK=pager) as server:
            room = furnish(server)
            for theme in (options.theme,) if options.theme else ("dark", "light"):
                take(room, browser, options.target.resolve(), theme, options.only)


if __name__ == "__main__":
    main()
