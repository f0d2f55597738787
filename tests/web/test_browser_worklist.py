"""The worklist in a real browser: it lives, holds still under hand and eye, is walked by keys and takes files."""

from __future__ import annotations

import io

import browser
import pydicom
import pytest
from browser import SIZE, until, wait_for, watched, written

from wetread.radiograph import phantom

pytestmark = browser.needed


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
