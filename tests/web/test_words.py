"""Reading in a real browser when something goes wrong: no typed word is lost, none is written over unseen.

Undo, addenda, own calls and own keys, too: what a reader does to what they said before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import browser
import pytest
from browser import LOST, SIZE, Server, free_port, log_in, serving_tiny, until, wait_for, watched

from wetread.clinic import blind
from wetread.config import Settings
from wetread.findings import CHEXPERT
from wetread.radiograph import phantom

SHARE = 0.2  # of studies that are read blind
KEPT = "document.querySelector('#kept').textContent"
WORDS = "Object.keys(localStorage).filter(name => name.startsWith('wetread.words:')).length"

pytestmark = browser.needed


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_tiny(tmp_path_factory.mktemp("words"), free_port(), WETREAD_BLIND_SHARE=str(SHARE)) as server:
        yield server


def film(server: Server, seed: int, *, is_blind: bool = False) -> str:
    """Send phantoms until one falls into the share that is read blind, or does not."""
    settings = Settings(blind_share=SHARE)
    for number in range(seed * 100, seed * 100 + 100):
        study = server.send(phantom.dicom(phantom.make(number, size=SIZE)), f"{number}.dcm")
        if blind.applies(settings, settings.site, study) == is_blind:
            return study
    raise AssertionError("none of a hundred studies")


def visit(page: Any, server: Server, study: str) -> None:
    page.goto(f"{server.url}/studies/{study}")
    until(page, "document.body.dataset.shown")


def note(page: Any, words: str) -> None:
    page.keyboard.press("m")
    page.keyboard.type(words)
    page.keyboard.press("Escape")


def said(page: Any, words: str) -> None:
    wait_for(page, lambda: words in page.inner_text("#kept"), words)


def cut(page: Any) -> None:
    """Let no review reach the server. A request that playwright holds back would go out when its page is closed."""
    page.evaluate(
        """() => {
            const real = window.fetch;
            window.fetch = (url, more) =>
                String(url).endsWith("/reviews") ? Promise.reject(new TypeError("cut off")) : real(url, more);
        }"""
    )


def crash(page: Any) -> None:
    """Let the page be closed without a last word to the server, as when the machine goes off."""
    page.evaluate("addEventListener('pagehide', event => event.stopImmediatePropagation(), true)")


def reviews(server: Server, study: str) -> list[dict[str, Any]]:
    return list(server.api.get(f"/studies/{study}").json()["reviews"])


class TestLostConnection:
    def test_a_restart_of_the_server_loses_no_word(self, server: Server, session: Any) -> None:
        study = film(server, 101)
        with watched(session, server.url, allow=LOST) as page:
            visit(page, server, study)
            note(page, "before")
            said(page, "Saved")
            server.end()
            page.keyboard.press("a")
            note(page, ", while it was down")
            said(page, "Not saved: connection lost, trying again")
            assert page.evaluate(WORDS) == 1
            server.start(int(server.url.rpartition(":")[2]))
            said(page, "Saved")
            until(page, f"{WORDS} === 0")
            (draft,) = reviews(server, study)
            assert draft["note"] == "before, while it was down"
            assert [a["answer"] for a in draft["findings"]] == ["agree"]
            page.keyboard.press("Enter")
            page.wait_for_selector('body[data-signed="true"]')

    def test_what_was_typed_is_back_after_the_page_was_closed(self, server: Server, session: Any) -> None:
        study = film(server, 102)
        with watched(session, server.url, allow=LOST) as page:
            visit(page, server, study)
            cut(page)
            page.keyboard.press("d")
            note(page, "typed without a line")
            said(page, "Not saved: connection lost")
            crash(page)
        assert reviews(server, study) == []
        with watched(session, server.url) as page:
            visit(page, server, study)
            assert "is here again" in page.inner_text("#message")
            assert page.input_value("#note") == "typed without a line"
            assert page.locator('.finding[data-answer="disagree"]').count() == 1
            said(page, "Saved")
        (draft,) = reviews(server, study)
        assert draft["note"] == "typed without a line"

    def test_who_is_logged_out_while_typing_comes_back_to_the_words(self, server: Server, chromium: Any) -> None:
        study = film(server, 103)
        account = {"name": "Dr Back", "role": "radiologist", "password": "correct horse battery staple"}
        assert server.api.post("/accounts", json=account).status_code == 201
        context = chromium.new_context(viewport={"width": 1024, "height": 640})

        with watched(context, server.url, allow="401") as page:
            page.goto(server.url + "/login")
            log_in(page, account["name"], account["password"])
            page.wait_for_url(server.url + "/")
            visit(page, server, study)
            context.clear_cookies()
            note(page, "the session ran out")
            said(page, "you are logged out")
            page.get_by_role("link", name="Log in again").click()
            page.wait_for_url("**/login")
            log_in(page, account["name"], account["password"])
            page.wait_for_url(f"**/studies/{study}")
            until(page, "document.querySelector('#note').value === 'the session ran out'")
            said(page, "Saved")
        context.close()
        assert [(r["reader"], r["note"]) for r in reviews(server, study)] == [("Dr Back", "the session ran out")]

    def test_logging_out_leaves_nothing_behind_and_asks_first(self, server: Server, session: Any) -> None:
        study = film(server, 104)
        asked: list[str] = []
        with watched(session, server.url, allow=LOST) as page:
            visit(page, server, study)
            cut(page)
            note(page, "nobody else's business")
            said(page, "Not saved")
            page.route("**/logout", lambda route: route.fulfill(status=204))  # the session is everybody's here
            page.goto(server.url + "/")
            page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.accept()))
            page.get_by_role("button", name="Log out").click()
            page.wait_for_url("**/login")
            assert page.evaluate(WORDS) == 0
        assert re.search("is not saved on the server yet", asked[0])


class TestTwoVersions:
    def test_neither_tab_writes_over_the_other(self, server: Server, session: Any) -> None:
        study = film(server, 111)
        with watched(session, server.url) as one, watched(session, server.url, allow="409") as two:
            visit(one, server, study)
            visit(two, server, study)
            note(one, "from one")
            said(one, "Saved")
            note(two, "from two")
            two.wait_for_selector("#versions:not([hidden])")
            assert "from one" in two.inner_text("#versions")
            assert two.input_value("#note") == "from two"
            assert [r["note"] for r in reviews(server, study)] == ["from one"]
            two.get_by_role("button", name="Keep what I have here").click()
            said(two, "Saved")
            assert [r["note"] for r in reviews(server, study)] == ["from two"]

    def test_words_that_were_kept_meet_a_newer_draft(self, server: Server, session: Any) -> None:
        study = film(server, 112)
        with watched(session, server.url, allow=LOST) as page:
            visit(page, server, study)
            cut(page)
            note(page, "old and unsaved")
            said(page, "Not saved")
            crash(page)
        with watched(session, server.url) as page:  # another browser of the same reader would do the same
            page.goto(server.url + "/")
            stored = page.evaluate("localStorage")
            page.evaluate("localStorage.clear()")
            visit(page, server, study)
            note(page, "newer")
            said(page, "Saved")
            page.evaluate(
                "kept => Object.entries(kept).forEach(([name, value]) => localStorage.setItem(name, value))", stored
            )
            page.reload()
            page.wait_for_selector("#versions:not([hidden])")
            assert page.input_value("#note") == "newer"
            assert "old and unsaved" in page.inner_text("#versions")
            page.get_by_role("button", name="Take what I typed").click()
            said(page, "Saved")
        assert [r["note"] for r in reviews(server, study)] == ["old and unsaved"]


class TestUndo:
    def test_the_last_answer_and_the_one_before_it(self, server: Server, page: Any) -> None:
        study = film(server, 121)
        visit(page, server, study)
        page.keyboard.press("a")
        page.keyboard.press("0")
        page.keyboard.press("y")
        note(page, "stays")
        for left in (("agree", True, None), ("agree", False, None), (None, False, None)):
            page.keyboard.press("z")
            now = page.evaluate(
                "[document.querySelector('.finding[data-answer]:not([data-answer=\"\"])')?.dataset.answer ?? null,"
                " document.querySelector('[data-action=normal]').ariaPressed === 'true',"
                " document.querySelector('[data-action=right]').ariaPressed === 'true' ? 'right' : null]"
            )
            assert tuple(now) == left
        assert page.input_value("#note") == "stays"

    def test_a_signature_is_taken_back_also_from_the_next_study(self, server: Server, page: Any) -> None:
        study = film(server, 122)
        film(server, 123)
        visit(page, server, study)
        for way in ("at once", "from the next"):
            page.keyboard.press("a") if way == "at once" else None
            page.keyboard.press("Enter")
            page.wait_for_selector('body[data-signed="true"]')
            if way == "from the next":
                page.keyboard.press("Enter")
                page.wait_for_url(lambda address: "/studies/" in address and study not in address)
                until(page, "document.body.dataset.shown")
            page.keyboard.press("z")
            page.wait_for_url(f"**/studies/{study}")
            page.wait_for_selector('body[data-signed="false"]')
            until(page, "document.body.dataset.shown")
            assert page.locator('.finding[data-answer="agree"]').count() == 1
        assert [r["state"] for r in reviews(server, study)] == ["withdrawn", "withdrawn", "draft"]

    def test_an_addendum_stands_beside_what_was_signed(self, server: Server, page: Any) -> None:
        study = film(server, 124)
        visit(page, server, study)
        page.keyboard.press("a")
        note(page, "first word")
        page.keyboard.press("Enter")
        page.wait_for_selector('body[data-signed="true"]')
        page.keyboard.press("t")
        page.keyboard.type("second word")
        page.keyboard.press("Escape")
        said(page, "Saved")
        page.reload()
        until(page, "document.body.dataset.shown")
        assert page.input_value("#note") == "second word"
        page.keyboard.press("Enter")
        page.wait_for_selector('body[data-signed="true"]')
        first, second = reviews(server, study)
        assert (first["note"], second["note"], second["parent"]) == ("first word", "second word", first["review"])
        assert second["findings"] == first["findings"]
        page.reload()
        assert "first word" in page.inner_text(".panel")


class TestKeys:
    def test_a_normal_study_takes_three_strokes(self, server: Server, page: Any) -> None:
        study = film(server, 131)
        server.api.post(f"/studies/{study}/claim")  # so that no other is on the way
        server.api.delete(f"/studies/{study}/claim")
        page.goto(server.url + "/")
        until(page, "document.querySelector('#live').textContent === 'live'")
        page.locator(f'tr[data-study="{study}"]').focus()
        strokes = iter(["Enter", "0", "Enter"])
        page.keyboard.press(next(strokes))
        page.wait_for_url(f"**/studies/{study}")
        until(page, "document.body.dataset.shown")
        page.keyboard.press(next(strokes))
        page.keyboard.press(next(strokes))
        page.wait_for_selector('body[data-signed="true"]')
        (review,) = reviews(server, study)
        assert (review["state"], review["normal"]) == ("signed", True)
        assert list(strokes) == []

    def test_each_page_lists_its_keys_and_they_can_be_changed(self, server: Server, page: Any) -> None:
        study = film(server, 132)
        visit(page, server, study)
        page.keyboard.press("?")
        normal = page.locator('#keys [data-rebind="study.normal"]')
        normal.click()
        page.keyboard.press("a")
        assert "is taken: agree" in page.inner_text("#keys [role=status]")
        page.keyboard.press("9")
        wait_for(page, lambda: "9 from now on" in page.inner_text("#keys [role=status]"))
        page.keyboard.press("Escape")
        assert page.locator("[data-action=normal] kbd").inner_text() == "9"
        page.keyboard.press("0")
        assert page.get_attribute("[data-action=normal]", "aria-pressed") == "false"
        page.keyboard.press("9")
        assert page.get_attribute("[data-action=normal]", "aria-pressed") == "true"
        said(page, "Saved")
        page.goto(server.url + "/")
        page.keyboard.press("?")
        page.locator('#keys [data-rebind="worklist.next"]').wait_for()
        page.get_by_role("button", name="All keys as they came").click()
        wait_for(page, lambda: "as they came" in page.inner_text("#keys [role=status]"))
        visit(page, server, study)
        page.keyboard.press("0")
        assert page.get_attribute("[data-action=normal]", "aria-pressed") == "false"


def test_a_study_is_read_blind_and_then_with_the_model(server: Server, page: Any) -> None:
    study = film(server, 141, is_blind=True)
    visit(page, server, study)
    assert page.locator(".finding").count() == 0
    assert "Read blind" in page.inner_text(".panel")
    page.keyboard.press("0")
    page.keyboard.press("Enter")
    page.wait_for_selector('body[data-blind="false"]')
    until(page, "document.body.dataset.shown")
    assert page.locator(".finding").count() == len(CHEXPERT.findings)
    assert page.get_attribute("[data-action=normal]", "aria-pressed") == "true"
    page.keyboard.press("Enter")
    page.wait_for_selector('body[data-signed="true"]')
    (review,) = reviews(server, study)
    assert (review["anchored"], review["own_call"]) == (False, {"normal": True, "findings": []})
