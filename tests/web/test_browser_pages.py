"""Uploads in number, trying an image, history and report, in a real browser; screenshots go to WETREAD_SHOTS."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import browser
import httpx
import numpy as np
import pypdf
import pytest
from browser import signed_in, until, watched

from wetread.radiograph import phantom

SIZE = 256
MANY = 60

pytestmark = browser.needed


@pytest.fixture(scope="module")
def session(server, chromium):
    with signed_in(chromium, server, 1280, 800) as context:
        yield context


@pytest.fixture(scope="module")
def film():
    return phantom.dicom(phantom.make(1, size=SIZE, findings=["Pneumothorax"]))


@pytest.fixture(scope="module")
def study(server, film):
    return server.send(film, "chest.dcm")


def shoot(page, name):
    if folder := os.environ.get("WETREAD_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def letters(count, start=0):
    """Return small files, each a study of its own: the list does not care what they are."""
    return [
        {"name": f"letter-{number}.txt", "mimeType": "text/plain", "buffer": f"Letter {start + number}".encode()}
        for number in range(count)
    ]


def summary(page):
    return page.locator("#adding").inner_text()


def total(server):
    return server.api.get("/worklist", params={"limit": 1}).json()["counts"]["unread"]


class TestUpload:
    def test_hundreds_of_files_each_with_its_answer(self, server, session):
        before = total(server)
        with watched(session, server.url) as page:
            page.goto(server.url + "/")
            page.set_input_files("#files", letters(MANY))
            until(page, f"document.querySelector('#adding').textContent === '{MANY} of {MANY} received'")
            assert page.locator("#added li[data-state=received]").count() == MANY
            assert page.locator("#adding-stop").is_hidden()
            shoot(page, "upload-many")
            page.click("#adding-clear")
            until(page, "!document.querySelector('#added li')")
        assert total(server) == before + MANY

    def test_a_lost_connection_goes_on_by_itself_and_loses_nothing(self, server, session):
        before, lost = total(server), []
        with watched(session, server.url, allow="ERR_INTERNET|Failed to load|ERR_") as page:
            page.goto(server.url + "/")

            def fail(route):
                if len(lost) < 4:
                    lost.append(route.request.url)
                    route.abort("internetdisconnected")
                else:
                    route.continue_()

            page.route("**/api/v1/studies", fail)
            page.set_input_files("#files", letters(20, start=10_000))
            until(page, "/goes on by itself/.test(document.querySelector('#adding').textContent)")
            shoot(page, "upload-lost")
            until(page, "document.querySelector('#adding').textContent === '20 of 20 received'")
        assert len(lost) == 4
        assert total(server) == before + 20

    def test_what_is_sent_twice_is_said_to_be_there(self, server, session, study, film):
        with watched(session, server.url) as page:
            page.goto(server.url + "/")
            page.set_input_files("#files", [{"name": "again.dcm", "mimeType": "", "buffer": film}])
            page.wait_for_selector("#added li[data-state=received]")
            assert page.locator("#added li").inner_text() == "again.dcm: received before"
            assert page.locator("#added a").get_attribute("href") == f"/studies/{study}"

    def test_partial_failures_can_be_tried_again(self, server, session):
        with watched(session, server.url, allow="status of (507|422)") as page:
            page.goto(server.url + "/")
            full = {"on": True}

            def answer(route):
                if full["on"] and b"Letter 20001" in (route.request.post_data_buffer or b""):
                    route.fulfill(status=507, json={"title": "Insufficient Storage", "detail": "the disk is full"})
                else:
                    route.continue_()

            page.route("**/api/v1/studies", answer)
            page.set_input_files("#files", letters(3, start=20_000))
            until(page, "document.querySelector('#adding').textContent === '2 of 3 received, 1 not received'")
            assert "the disk is full" in page.locator("#added li[data-state=failed]").inner_text()
            full["on"] = False
            page.click("#adding-retry")
            until(page, "document.querySelector('#adding').textContent === '3 of 3 received'")

    def test_who_leaves_the_page_is_told_what_was_received(self, server, session):
        with watched(session, server.url, allow="Failed to load|ERR_") as page:
            page.goto(server.url + "/")
            page.on("dialog", lambda dialog: dialog.accept())  # "leave the page?"
            stuck = []

            def hold(route):
                if b"Letter 40002" in (route.request.post_data_buffer or b""):
                    stuck.append(route)  # never answered
                else:
                    route.continue_()

            page.route("**/api/v1/studies", hold)
            page.set_input_files("#files", letters(3, start=40_000))
            until(page, "document.querySelector('#adding').textContent === '2 of 3 received, 1 to go'")
            page.reload()
            words = page.inner_text("#adding")
            assert "2 were received and are kept, 1 may be missing" in words
            page.reload()
            assert page.inner_text("#adding") == ""

    def test_cancelling_sends_no_more(self, server, session):
        with watched(session, server.url, allow="Failed to load|ERR_") as page:
            page.goto(server.url + "/")
            held = []
            page.route("**/api/v1/studies", lambda route: held.append(route))
            page.set_input_files("#files", letters(10, start=30_000))
            until(page, "document.querySelectorAll('#added li[data-state=sending]').length === 3")
            page.click("#adding-stop")
            until(page, "document.querySelectorAll('#added li[data-state=cancelled]').length === 10")
            assert len(held) == 3
            until(page, "document.querySelector('#adding').textContent === '0 of 10 received, 10 cancelled'")
            shoot(page, "upload-cancelled")

    def test_a_zip_tells_what_was_in_it(self, server, session):
        from ward import archive

        content = archive({"a.dcm": phantom.dicom(phantom.make(41, size=SIZE)), "b.txt": b"Dear", "Thumbs.db": b"x"})
        with watched(session, server.url) as page:
            page.goto(server.url + "/")
            page.set_input_files("#files", [{"name": "all.zip", "mimeType": "application/zip", "buffer": content}])
            page.wait_for_selector("#added li[data-state=received]")
            assert page.locator("#added li").inner_text().startswith("all.zip: 2 received, 1 skipped")


class TestTry:
    def test_the_original_first_then_where_the_model_saw_it_then_gone(self, server, session, film):
        before = total(server)
        with watched(session, server.url) as page:
            page.goto(server.url + "/try")
            page.set_input_files("#file", [{"name": "chest.dcm", "mimeType": "", "buffer": film}])
            page.wait_for_selector("#answer:not([hidden])")
            assert page.locator("#picture").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [
                SIZE,
                SIZE,
            ]
            assert page.locator("#legend").is_hidden()
            drawn = (
                "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(v => v)"
            )
            assert page.locator("#overlay").evaluate(drawn) is False
            shown = []
            for finding in page.locator(".saying:not([disabled])").all():
                finding.focus()
                page.keyboard.press("Enter")
                assert finding.get_attribute("aria-pressed") == "true"
                assert page.locator(".saying[aria-pressed=true]").count() == 1
                shown.append(page.locator("#overlay").evaluate(drawn))
            assert any(shown)  # a map that speaks against its finding shows nothing
            assert page.locator("#legend").is_visible()
            boxes = page.evaluate(
                """() => ['picture', 'overlay'].map(id => document.getElementById(id).getBoundingClientRect())
                .map(({left, top, width, height}) => [left, top, width, height])"""
            )
            np.testing.assert_allclose(boxes[0], boxes[1], atol=0.5)
            shoot(page, "try")
            page.click("#forget")
            assert page.locator("#answer").is_hidden()
            assert page.locator("#picture").get_attribute("src") is None
        assert total(server) == before

    def test_refusals_say_code_and_reason(self, server, session):
        with watched(session, server.url, allow="status of 422") as page:
            page.goto(server.url + "/try")
            page.set_input_files("#file", [{"name": "letter.txt", "mimeType": "text/plain", "buffer": b"Dear"}])
            until(page, "/refused \\(UNREADABLE\\): file: /.test(document.querySelector('#state').textContent)")
            page.fill("#url", "http://127.0.0.1:1/chest.dcm")
            page.keyboard.press("Enter")
            until(page, "/refused: url: /.test(document.querySelector('#state').textContent)")
            shoot(page, "try-refused")


class TestPaper:
    def test_the_history_is_one_link_from_the_study(self, server, session, study):
        with watched(session, server.url) as page:
            page.goto(f"{server.url}/studies/{study}")
            page.get_by_role("link", name="History").focus()
            page.keyboard.press("Enter")
            page.wait_for_url("**/history")
            text = page.locator("main").inner_text()
            assert "chest.dcm arrived" in text
            assert re.search(r"analysed chest\.dcm: |did not analyse", text)
            shoot(page, "history")
            page.get_by_role("link", name="Arrival").click()
            page.wait_for_url("**/history?kind=arrival")
            assert "arrived" in page.locator("main").inner_text()
            assert "looked at" not in page.locator("main").inner_text()

    def test_the_page_as_it_is_printed(self, server, session, study):
        with watched(session, server.url) as page:
            page.goto(f"{server.url}/studies/{study}/report?overlay=true")
            until(page, "[...document.images].every(image => image.complete && image.naturalWidth)")
            shoot(page, "report")
            page.emulate_media(media="print")
            for paper, size in (("A4", (595, 842)), ("Letter", (612, 792))):
                printed = page.pdf(format=paper, print_background=False)
                reader = pypdf.PdfReader(io.BytesIO(printed))
                assert [round(float(side)) for side in reader.pages[0].mediabox[2:]] == pytest.approx(size, abs=1)
                for sheet in reader.pages:
                    text = " ".join(sheet.extract_text().split())
                    assert "Research use only" in text
                    assert "Worklist" not in text
                if folder := os.environ.get("WETREAD_SHOTS"):
                    (Path(folder) / f"printed-{paper}.pdf").write_bytes(printed)

    def test_the_pdf_is_one_click_away(self, server, session, study):
        with watched(session, server.url) as page:
            page.goto(f"{server.url}/studies/{study}/report")
            address = page.get_by_role("link", name="PDF, A4").get_attribute("href")
            cookies = {cookie["name"]: cookie["value"] for cookie in session.cookies()}
            answer = httpx.get(server.url + address, cookies=cookies, trust_env=False, timeout=60)
            assert pypdf.PdfReader(io.BytesIO(answer.content)).pages
            if folder := os.environ.get("WETREAD_SHOTS"):
                (Path(folder) / "report.pdf").write_bytes(answer.content)
                more = httpx.get(f"{server.url}{address}&overlay=true", cookies=cookies, trust_env=False, timeout=60)
                (Path(folder) / "report-overlay.pdf").write_bytes(more.content)
