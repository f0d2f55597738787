"""A critical finding from the worklist to who was told, and AI turned off, in a real browser."""

from __future__ import annotations

import json

import browser
from browser import serving_tiny, signed_in, until, watched

from wetread.findings import CHEXPERT
from wetread.radiograph import phantom

pytestmark = browser.needed


def test_a_critical_finding_is_acknowledged_signed_and_told_by_keyboard_and_ai_turned_off(tmp_path, chromium):
    rule = tmp_path / "rule.toml"  # whatever it flags is critical
    critical = [f for f in CHEXPERT.findings if f not in (CHEXPERT.normal, *CHEXPERT.neutral)]
    rule.write_text(f"[critical]\nfindings = {json.dumps(critical)}\ncap_minutes = 30\n")
    with serving_tiny(tmp_path, priority=str(rule)) as server:
        study = server.send(phantom.dicom(phantom.make(1, size=256)), "chest.dcm")
        [alert] = server.api.get("/critical").json()
        assert (alert["study"], alert["stage"]) == (study, "acknowledge")
        strip = "#critical p[data-critical]"
        with signed_in(chromium, server, 1366, 768) as context, watched(context, server.url) as page:
            page.goto(server.url)
            assert "acknowledge within" in page.inner_text(strip)
            page.click("#critical a")
            page.wait_for_selector(f"{strip}.here")
            until(page, "document.querySelector('#level').textContent !== ''")  # the picture is there, and the keys

            page.keyboard.press("c")
            page.wait_for_selector("#communication[open]")
            page.click("#told-acknowledge")
            page.wait_for_selector("#communication[open]", state="hidden")
            page.wait_for_selector(f"{strip}.here[data-stage='sign']")

            page.keyboard.press("a")  # the finding that ranked it is chosen
            page.keyboard.press("Enter")
            page.wait_for_selector(f"{strip}.here[data-stage='tell']")

            page.keyboard.press("c")
            page.wait_for_selector("#communication[open]")
            page.click("#communication button[value=communicated]")  # what is missing is asked for
            page.fill("#told-recipient", "Sister M")
            page.check("[name=told-back][value=yes]")
            page.keyboard.press("Enter")
            page.wait_for_selector("#critical", state="hidden")
            done = server.api.get(f"/studies/{study}/communications").json()
            assert done["alert"] is None
            told = done["communications"][-1]
            assert (told["kind"], told["recipient"], told["how"], told["read_back"]) == (
                "communicated", "Sister M", "phone", True
            )  # fmt: skip

            # And the strip tells it by itself.
            other = server.send(phantom.dicom(phantom.make(2, size=256)), "next.dcm")
            page.wait_for_selector(f"#critical a[href='/studies/{other}']")

            page.goto(f"{server.url}/settings/ai")
            form = page.locator("form.switch", has_text="model tiny")
            form.locator("[name=reason]").fill("too many alerts")
            form.locator("[name=sure]").check()
            form.locator("button").click()
            page.wait_for_selector("h2:has-text('Model tiny: off')")
            page.goto(server.url)
            assert "Model tiny is switched off since" in page.inner_text("#notices")
            assert "too many alerts" in page.inner_text("#notices")
