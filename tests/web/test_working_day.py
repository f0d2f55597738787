"""The working day of a radiologist, by keyboard, in a department that the shipped model read; two who want one study.

What they did is then looked for where it counts: in the API, in the database and in the audit chain.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib import resources
from typing import Any

import browser
import numpy as np
import pytest
import sqlalchemy as sa
from browser import LOST, Server, free_port, log_in, pictures, serving, settled, until, wait_for, watched

from wetread.clinic import audit, store
from wetread.clinic.store import Store
from wetread.radiograph import phantom

pytestmark = [
    *browser.needed,
    pytest.mark.skipif(
        not (resources.files("wetread") / "shipped" / "phantom").is_dir(), reason="needs the shipped model `phantom`"
    ),
]

PASSWORD = "a long enough pass phrase"
READER, COLLEAGUE = "Dr Night", "Dr Day"
FINDINGS = {
    "compared": ["Pneumothorax"],
    "denied": ["Pleural Effusion"],
    "added to": ["Edema"],
    "commented": ["Cardiomegaly"],
    "refused": ["Consolidation"],
    "interrupted": ["Fracture"],
    "lateral": [],
    "normal 1": [],
    "normal 2": [],
    "normal 3": [],
    "handed over": [],
}
DENIED, COMMENTED, REFUSED = "an old pleural scar, no fluid", "compare with the film of May", "taken anew tomorrow"
MIXED_UP = "the plate of the bed beside"
BEFORE, WHILE, AFTER = "heart enlarged", ", as the line went dead", ", and after it came back"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("day"), "phantom", free_port()) as server:
        for name in (READER, COLLEAGUE):
            account = {"name": name, "role": "radiologist", "password": PASSWORD}
            assert server.api.post("/accounts", json=account).status_code == 201
        yield server


@pytest.fixture(scope="module")
def prior(server: Server) -> str:
    """Send last year's film of the first patient, which somebody read then."""
    film = phantom.dicom(phantom.make(1, size=256), study="last year", acquired_at="20250110080000")
    study = server.send(film, "prior.dcm")
    done = server.api.post(f"/studies/{study}/reviews", json={"state": "signed", "normal": True})
    assert done.status_code == 201, done.text
    return study


@pytest.fixture(scope="module")
def department(server: Server, prior: str) -> dict[str, str]:
    """Send eleven patients; give what is to be done to study."""
    sent = {}
    for seed, (name, findings) in enumerate(FINDINGS.items(), 1):
        body = phantom.make(seed, size=256, view="LATERAL" if name == "lateral" else "PA", findings=findings)
        sent[name] = server.send(phantom.dicom(body), f"{seed}.dcm")
    assert prior not in sent.values()
    return sent


@contextmanager
def reading_room(chromium: Any, server: Server, name: str) -> Iterator[Any]:
    """Log in with a password, in a browser of one's own; give the worklist."""
    context = chromium.new_context(viewport={"width": 1366, "height": 768})
    with watched(context, server.url, allow=f"{LOST}|409") as page:
        page.goto(server.url + "/")
        page.wait_for_url("**/login")
        log_in(page, name, PASSWORD)
        page.wait_for_url(server.url + "/")
        until(page, "document.querySelector('#live').textContent === 'live'")
        yield page
    context.close()


def row(page: Any, study: str) -> Any:
    return page.locator(f'tr[data-study="{study}"]')


def walk_to(page: Any, study: str) -> None:
    """Put the focus on the row of a study, key by key."""
    page.keyboard.press("Home")
    for _ in range(100):
        if page.evaluate("document.activeElement.dataset.study") == study:
            return
        page.keyboard.press("j")
    raise AssertionError("no such row")


def kept(page: Any, words: str) -> None:
    wait_for(page, lambda: words in page.inner_text("#kept"), words)


def write(page: Any, words: str) -> None:
    page.keyboard.press("m")
    page.keyboard.press("End")
    page.keyboard.type(words)
    page.keyboard.press("Escape")


class Day:
    """What is done with each study, by keyboard only."""

    def __init__(self, page: Any, server: Server) -> None:
        self.page, self.server = page, server

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def read(self, what: str) -> None:
        """Do what is to be done, and sign."""
        match what:
            case "compared":
                self.compare()
            case "denied":
                self.press("d", "x")
                write(self.page, DENIED)
            case "added to":
                self.press("f")
                self.page.keyboard.type("Pneumoperitoneum")
                self.press("Enter")
            case "commented":
                self.press("u")
                write(self.page, COMMENTED)
            case "refused":
                write(self.page, REFUSED)
                self.refuse()
            case "interrupted":
                self.lose_the_connection()
            case _:
                self.press("0")
        self.press("Enter")
        wait_for(self.page, lambda: self.page.get_attribute("body", "data-signed") == "true", f"the signature: {what}")

    def compare(self) -> None:
        """Lay last year's film beside; what is done to one window is done to the other."""
        page = self.page
        self.press("p")
        until(page, "document.querySelectorAll('.pane:not(.coming)').length === 2")
        assert "PRIOR 2025-01-10" in page.locator(".bar").nth(1).inner_text()
        settled(page)
        before = pictures(page)
        self.press("i")

        def added() -> list[float]:
            return [float(np.median(now + was)) for now, was in zip(pictures(page), before, strict=True)]

        wait_for(page, lambda: np.allclose(added(), 255, atol=2), "both as negatives")
        self.press("i")
        wait_for(page, lambda: all(map(np.array_equal, pictures(page), before)), "both as they were")
        self.press("a")

    def refuse(self) -> None:
        """Say that the only image is another patient's; what is written stays, and the study can be closed."""
        page = self.page
        self.press("Shift+X")
        page.wait_for_selector("dialog#refusing[open]")
        assert page.locator("#refused-images :checked").count() == 1  # the image that is looked at
        self.press(" ", "Tab")
        page.keyboard.type(MIXED_UP)
        with page.expect_navigation():
            self.press("Enter")
        until(page, "document.querySelector('#message')?.textContent.includes('All images are refused')")
        assert page.locator("[data-image]:enabled").count() == 0
        assert page.input_value("#note") == REFUSED
        self.press("Enter")
        until(page, "document.querySelector('#message').textContent.includes('Press Enter again')")

    def lose_the_connection(self) -> None:
        """Have the server go while a sentence is typed, and come back while it goes on."""
        page = self.page
        self.press("a")
        write(page, BEFORE)
        kept(page, "Saved")
        self.server.end()
        write(page, WHILE)
        kept(page, "Not saved: connection lost, trying again")
        self.server.start(int(self.server.url.rpartition(":")[2]))
        write(page, AFTER)
        kept(page, "Saved")
        assert page.input_value("#note") == BEFORE + WHILE + AFTER


def test_a_working_day(server: Server, department: dict[str, str], chromium: Any) -> None:
    names = {study: name for name, study in department.items()}
    with reading_room(chromium, server, READER) as page:
        day = Day(page, server)
        assert page.locator("#rows tr[data-study]").count() == len(names)
        walk_to(page, department["handed over"])
        day.press("o")
        page.wait_for_selector("dialog#hand-over[open]")
        assert page.input_value("#reader") == COLLEAGUE  # nobody else is there to be chosen
        day.press("Tab", "Enter")
        wait_for(page, lambda: COLLEAGUE in row(page, department["handed over"]).locator(".reader").inner_text())

        day.press("Home", "Enter")
        page.wait_for_url("**/studies/*")
        read: list[str] = []
        while len(read) < 10:
            until(page, "document.body?.dataset.shown && document.querySelector('#level').textContent")
            study = page.evaluate("document.body.dataset.study")
            assert study not in read
            day.read(names[study])
            read.append(study)
            day.press("n")
            until(page, "last => document.body && document.body.dataset.study !== last", study)
        page.wait_for_url(server.url + "/")  # nothing is left but what a colleague holds
        assert page.locator("#rows tr[data-study]").count() == 1
        page.get_by_role("button", name="Log out").press("Enter")
        page.wait_for_url("**/login")
        assert page.evaluate("Object.keys(localStorage).filter(name => name.startsWith('wetread.words:'))") == []

    assert set(read) == set(names) - {department["handed over"]}
    recorded(server, department)


def recorded(server: Server, department: dict[str, str]) -> None:
    """Look for exactly what was done."""
    found = {name: server.api.get(f"/studies/{study}").json() for name, study in department.items()}
    assert found["handed over"]["claimed_by"] == COLLEAGUE
    assert found.pop("handed over")["reviews"] == []
    signed = {}
    for name, study in found.items():
        (signed[name],) = study["reviews"]
        assert (signed[name]["state"], signed[name]["reader"], study["status"]) == ("signed", READER, "reviewed")
    answers = {name: [a["answer"] for a in review["findings"]] for name, review in signed.items()}
    assert {name: said for name, said in answers.items() if said} == {
        "compared": ["agree"], "denied": ["disagree"], "added to": ["added"], "commented": ["unsure"],
        "interrupted": ["agree"],
    }  # fmt: skip
    assert {name: review["note"] for name, review in signed.items() if review["note"]} == {
        "denied": DENIED, "commented": COMMENTED, "refused": REFUSED, "interrupted": BEFORE + WHILE + AFTER,
    }  # fmt: skip
    assert {name for name, review in signed.items() if review["model_verdict"]} == {"denied"}
    assert signed["denied"]["model_verdict"] == "wrong"
    (image,) = found["refused"]["images"]
    assert (image["state"], image["reason"]) == ("rejected", f"another patient's: {MIXED_UP}")
    assert {name for name, review in signed.items() if review["normal"]} == {
        "lateral", "normal 1", "normal 2", "normal 3"
    }  # fmt: skip
    with opened(server) as database:
        with database.read() as connection:
            deeds = connection.execute(
                sa.select(store.audit.c.action, store.audit.c.object).where(store.audit.c.actor == READER)
            ).all()
        assert audit.examine(database).whole
    of = {action: [what for deed, what in deeds if deed == action] for action in {deed for deed, _ in deeds}}
    assert sorted(of["review.signed"]) == sorted(study["study"] for study in found.values())
    assert of["study.handed_over"] == [department["handed over"]]
    assert of["image.rejected"] == [department["refused"]]
    assert (len(of["session.opened"]), len(of["session.closed"])) == (1, 1)


PRESS = """at => void setTimeout(() => document.activeElement.dispatchEvent(
    new KeyboardEvent("keydown", {key: "c", bubbles: true})), at - Date.now())"""


def test_two_readers_who_want_one_study(server: Server, prior: str, chromium: Any) -> None:
    study = server.send(phantom.dicom(phantom.make(31, size=256, findings=["Edema"])), "31.dcm")
    address = f"{server.url}/studies/{study}"

    def holder() -> str | None:
        name: str | None = server.api.get(f"/studies/{study}").json()["claimed_by"]
        return name

    def says(page: Any, words: str) -> None:
        wait_for(page, lambda: words in row(page, study).locator(".reader").inner_text(), words)

    with reading_room(chromium, server, READER) as first, reading_room(chromium, server, COLLEAGUE) as second:
        answers: list[int] = []
        for page in (first, second):
            page.on("response", lambda r: answers.append(r.status) if r.url.endswith("/claim") else None)
            walk_to(page, study)
        both = first.evaluate("Date.now()") + 1000
        for page in (first, second):
            page.evaluate(PRESS, both)
        wait_for(first, holder, "a claim")
        names = {READER: first, COLLEAGUE: second}
        has = holder()
        assert has is not None
        winner, loser = names.pop(has), next(iter(names.values()))
        says(winner, "you")
        says(loser, has)
        assert answers.count(200) == 1  # the other was refused, or told before the key was down

        loser.keyboard.press("Enter")  # who has it may be looked over the shoulder, and not written over
        loser.wait_for_url(address)
        until(loser, "document.querySelector('#message')?.textContent.includes('claimed by')")
        assert has in loser.inner_text("#message")
        loser.keyboard.press("a")
        assert loser.locator('.finding[data-answer="agree"]').count() == 0
        loser.keyboard.press("w")
        loser.wait_for_url(server.url + "/")

        walk_to(winner, study)
        winner.keyboard.press("c")  # given back
        wait_for(winner, lambda: holder() is None, "the release")
        says(loser, "claim")
        walk_to(loser, study)
        loser.keyboard.press("Enter")
        loser.wait_for_url(address)
        wait_for(loser, holder, "the second claim")
        until(loser, "document.body?.dataset.shown")
        write(loser, "half a sentence")
        kept(loser, "Saved")
        says(winner, next(iter(names)))

        run_out(server, study)  # nobody touched it for `claim_minutes`
        walk_to(winner, study)
        winner.keyboard.press("Enter")
        winner.wait_for_url(address)
        wait_for(winner, lambda: holder() == has, "the claim after the other ran out")
        until(winner, "document.body?.dataset.shown")
        write(loser, ", and the rest of it")
        kept(loser, "Your words are kept in this browser")
        winner.keyboard.press("w")
        winner.wait_for_url(server.url + "/")
        wait_for(winner, lambda: holder() is None, "what leaving gives back")
        with loser.expect_navigation():
            loser.keyboard.press("g")
        until(loser, "document.body?.dataset.shown")
        assert loser.input_value("#note") == "half a sentence, and the rest of it"
        loser.keyboard.press("a")
        loser.keyboard.press("Enter")
        loser.wait_for_selector('body[data-signed="true"]')
    (review,) = server.api.get(f"/studies/{study}").json()["reviews"]
    assert (review["state"], review["note"]) == ("signed", "half a sentence, and the rest of it")
    assert review["reader"] != has
    with opened(server) as database:
        assert audit.examine(database).whole


def run_out(server: Server, study: str) -> None:
    """Let the time of a claim be over."""
    with opened(server) as database, database.write() as connection:
        past = {"expires_at": store.now() - timedelta(seconds=1)}
        connection.execute(store.claim.update().where(store.claim.c.study == study).values(past))


@contextmanager
def opened(server: Server) -> Iterator[Store]:
    database = Store.open(server.data)
    try:
        yield database
    finally:
        database.close()
