"""What is fetched before it is looked at: which picture, what the audit says of it, and where it stays."""

from __future__ import annotations

import re

import browser
import pytest
from browser import until, wait_for, watched
from ward import SITE, dicom

from wetread.clinic import access, audit, claims, history

AHEAD = {"Wetread-Ahead": "1"}


@pytest.fixture(scope="module")
def studies(client) -> list[str]:
    """Send three studies; give them in the order of the list."""
    for seed in range(3):
        client.send((f"{seed}.dcm", dicom(seed, PatientName=f"Ahead^{seed}", PatientID=f"AH-{seed}")))
    return [row["study"] for row in client("GET", "/api/v1/worklist").json()["studies"]]


def image_of(client, study: str) -> str:
    return client("GET", f"/api/v1/studies/{study}", "engineer").json()["images"][0]["image"]


def deeds(client, study: str, actor: str) -> list[str]:
    """Return what the audit says that somebody did to a study, in order."""
    return [row["action"] for row in audit.rows(client.clinic.database, actor=actor, what=study)]


def test_it_names_the_picture_of_the_next_study_and_tells_nothing_of_the_patient(client, studies):
    answer = client("GET", f"/studies/ahead?after={studies[0]}", "radiologist")
    assert answer.json() == {"image": image_of(client, studies[1])}
    assert answer.headers["cache-control"] == "no-store"
    assert all(deeds(client, study, "radiologist") == [] for study in studies)
    claims.claim(client.clinic.database, SITE, studies[1], "Dr Else")
    try:
        answer = client("GET", f"/studies/ahead?after={studies[0]}", "radiologist")
        assert answer.json() == {"image": image_of(client, studies[2])}
    finally:
        claims.release(client.clinic.database, SITE, studies[1], "Dr Else")


def test_what_is_fetched_ahead_is_audited_as_that_and_the_look_when_the_study_is_opened(client, studies):
    study, image = studies[1], image_of(client, studies[1])
    ahead = client("GET", f"/api/v1/images/{image}/values", "radiologist", headers=AHEAD)
    assert ahead.headers["cache-control"] == "no-store"  # nothing of the next patient in a browser's cache
    assert deeds(client, study, "radiologist") == ["study.prefetched"]
    assert client("GET", f"/studies/{study}", "radiologist").status_code == 200
    assert deeds(client, study, "radiologist") == ["study.prefetched", "study.viewed"]
    told = [entry.words for entry in history.history(client.clinic.database, SITE, study) if entry.who == "radiologist"]
    assert any("fetched ahead" in words for words in told)
    assert any(words == "looked at the study" for words in told)
    looked = client("GET", f"/api/v1/images/{image}/values", "radiologist")
    assert looked.content == ahead.content


def test_only_the_next_study_is_fetched_ahead(client, studies):
    """Whoever sends the header for any other study has looked at it."""
    _, next_, last = studies
    get = f"/api/v1/images/{image_of(client, last)}/values"
    assert client("GET", get, "service", headers=AHEAD).status_code == 200
    assert deeds(client, last, "service") == ["study.viewed"]
    claims.claim(client.clinic.database, SITE, next_, "Dr Else")
    try:  # now it is the next one
        assert client("GET", get, "service", headers=AHEAD).status_code == 200
        assert deeds(client, last, "service") == ["study.viewed", "study.prefetched"]
        held = f"/api/v1/images/{image_of(client, next_)}/values"
        assert client("GET", held, "service", headers=AHEAD).status_code == 200
        assert deeds(client, next_, "service") == ["study.viewed"]
    finally:
        claims.release(client.clinic.database, SITE, next_, "Dr Else")


def test_no_header_makes_a_look_at_the_page_less_than_a_look(client, studies):
    client("GET", f"/studies/{studies[2]}", "administrator", headers=AHEAD)
    assert "study.viewed" in deeds(client, studies[2], "administrator")


def test_a_cached_picture_is_given_again_only_to_who_may_see_it(client, studies):
    """A browser that several use asks each time, and is told that it has it only when this caller may have it."""
    image = image_of(client, studies[0])
    tag = {"If-None-Match": client("GET", f"/api/v1/images/{image}/values", "radiologist").headers["etag"]}
    assert client("GET", f"/api/v1/images/{image}/values", "radiologist", headers=tag).status_code == 304
    elsewhere = access.create(client.clinic.database, "stranger", "administrator", "elsewhere")
    other = {"Authorization": f"Bearer {elsewhere}"} | tag
    for more in ({}, AHEAD):
        assert client.http.get(f"/api/v1/images/{image}/values", headers=other | more).status_code == 404
        assert client.http.get(f"/api/v1/images/{image}/values", headers=tag | more).status_code == 401


class TestBrowser:
    """What Chromium asks for before the next study is opened."""

    pytestmark = browser.needed

    def test_only_the_picture_comes_ahead_and_another_reader_gets_nothing_of_it(self, server, session):
        for seed in (5, 6):
            server.send(dicom(seed, PatientID=f"NX-{seed}"), f"{seed}.dcm")
        with watched(session, server.url) as page:
            asked = []
            page.on("request", lambda request: asked.append(request))
            page.goto(server.url + "/studies/next")
            until(page, "document.body.dataset.drawn")
            own = page.evaluate("document.body.dataset.study")
            wait_for(page, lambda: any("wetread-ahead" in request.headers for request in asked), "the next picture")
            ahead = [request for request in asked if "wetread-ahead" in request.headers]
            assert [request.url.rsplit("/", 1)[1] for request in ahead] == ["values"]
            opened = {key for request in asked for key in re.findall(r"/studies/([0-9a-f-]{36})", request.url)}
            assert opened == {own}

            # Somebody else logs in, in another tab: the page is loaded whole, and what the first had is gone.
            def other(route):
                answer = route.fetch()
                text = answer.text()
                assert 'data-reader="' in text
                route.fulfill(response=answer, body=text.replace('data-reader="', 'data-reader="other '))

            page.evaluate("window.same = true")
            page.route("**/studies/next?*", other)
            page.keyboard.press("n")
            until(page, "was => document.body?.dataset.drawn && document.body.dataset.study !== was", own)
            assert page.evaluate("window.same") is None
