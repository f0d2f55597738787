"""Reading one study in a real browser: its picture, its heatmaps, and what the reader says of it."""

from __future__ import annotations

import base64

import browser
import cv2
import numpy as np
import pytest
from browser import SIZE, fitted, level, open_study, picture_only, reference, settled, until, wait_for, watched

from wetread.radiograph import phantom

pytestmark = browser.needed


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

    def test_an_image_is_refused_and_taken_back_by_keys(self, server, page):
        film = phantom.make(47, size=128)
        study = server.send(phantom.dicom(film), "47.dcm")
        server.send(phantom.dicom(phantom.make(47, size=128, view="LATERAL"), number=2), "47-lateral.dcm")

        def images() -> list[tuple[str, str]]:
            return [
                (image["state"], image["reason"] or "")
                for image in server.api.get(f"/studies/{study}").json()["images"]
            ]

        open_study(page, server, study)
        page.keyboard.press("Shift+X")
        page.wait_for_selector("dialog#refusing[open]")
        page.keyboard.press("Enter")  # says no reason yet
        assert page.locator("dialog#refusing[open]").count() == 1
        page.keyboard.press("ArrowUp")  # from the first reason to the last: in words
        page.keyboard.press("Enter")  # and there are none
        assert page.locator("#refused-words:invalid").count() == 1
        assert [state for state, _ in images()] == ["stored", "stored"]
        page.locator("#refused-words").focus()
        page.keyboard.type("the exposure failed")
        with page.expect_navigation():
            page.keyboard.press("Enter")
        until(page, "document.body?.dataset.shown")
        assert images() == [("rejected", "the exposure failed"), ("stored", "")]
        assert page.locator("[data-image]:enabled").count() == 1
        page.goto(f"{server.url}/studies/{study}/history")
        page.get_by_text("rejected 47.dcm: the exposure failed").wait_for()

        open_study(page, server, study)
        page.keyboard.press("Shift+X")
        page.get_by_role("button", name="Take the refusal back").focus()
        with page.expect_navigation():
            page.keyboard.press("Enter")
        until(page, "document.body?.dataset.shown")
        assert [state for state, _ in images()] == ["stored", "stored"]

    def test_opening_claims_and_leaving_gives_back(self, server, page):
        study = server.send(phantom.dicom(phantom.make(12, size=SIZE)), "12.dcm")
        open_study(page, server, study)
        wait_for(page, lambda: server.api.get(f"/studies/{study}").json()["status"] == "claimed")
        page.keyboard.press("w")
        page.wait_for_url(server.url + "/")
        wait_for(page, lambda: server.api.get(f"/studies/{study}").json()["status"] != "claimed")
