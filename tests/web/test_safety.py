"""AI off and critical findings over HTTP: the API, the pages, the numbers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import sqlalchemy as sa
from page import Page
from ward import png

from wetread.clinic import access, store


@pytest.fixture
def browser(client: Any) -> Any:
    """Sign an administrator in, and give what opens pages."""
    code = access.login_code(client.clinic.database, "Dr A", access.Role.ADMINISTRATOR, "default")
    client.http.post("/login", data={"code": code})
    yield client.http
    client.http.cookies.clear()


def csrf(text: str) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', text)
    assert found is not None
    return found[1]


def test_the_api_turns_one_model_and_says_so(client: Any) -> None:
    study = client.send(("pneumothorax.png", png(1)))["studies"][0]["study"]
    assert client("GET", f"/api/v1/studies/{study}").json()["priority"] == "critical"
    off = client("PUT", "/api/v1/ai", json={"on": False, "model": "names", "reason": "too many"}).json()
    assert (off["on"], off["models"][0]["state"], off["models"][0]["by"]) == (False, "off", "administrator")
    assert "Model names is switched off since" in off["banner"]
    found = client("GET", f"/api/v1/studies/{study}").json()
    assert (found["priority"], found["findings"]) == ("routine", [])
    assert 'wetread_ai_off{by="person",model="names",site="default"} 1.0' in client("GET", "/metrics").text
    assert client("PUT", "/api/v1/ai", json={"on": False, "model": "nobody"}).status_code == 404
    on = client("PUT", "/api/v1/ai", json={"on": True, "model": "names"}).json()
    assert (on["on"], on["banner"]) == (True, None)
    assert client("GET", f"/api/v1/studies/{study}").json()["priority"] == "critical"
    assert "wetread_ai_off{" not in client("GET", "/metrics").text


def test_the_page_wants_a_reason_and_a_confirmation(client: Any, browser: Any) -> None:
    text = browser.get("/settings/ai").text
    Page(text)
    assert "Model names: on" in text
    key = csrf(text)
    for data, said in (({"sure": "yes"}, "reason"), ({"reason": "update"}, "not confirmed")):
        answer = browser.post("/settings/ai", data={"csrf": key, "on": "false", "model": "names", **data})
        assert answer.status_code == 422
        assert said in answer.text
        assert client.clinic.ai("default").on
    data = {"csrf": key, "on": "false", "model": "names", "reason": "<b>update</b>", "sure": "yes"}
    answer = browser.post("/settings/ai", data=data, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/settings/ai")
    text = browser.get("/settings/ai").text
    assert "Model names: off" in text
    assert "&lt;b&gt;update&lt;/b&gt;" in text
    assert "<b>update" not in text
    assert "Model names is switched off" in browser.get("/").text
    assert browser.post("/settings/ai", data=data | {"csrf": "wrong", "on": "true"}).status_code == 403
    assert browser.post("/settings/ai", data=data | {"model": "nobody"}).status_code == 404
    browser.post("/settings/ai", data=data | {"on": "true"})
    assert client.clinic.ai("default").banner is None


def test_all_of_a_site_goes_off_and_on(client: Any) -> None:
    off = client("PUT", "/api/v1/ai", json={"on": False, "reason": "update"}).json()
    assert (off["on"], off["off"]["actor"], off["off"]["reason"]) == (False, "administrator", "update")
    assert client("PUT", "/api/v1/ai", json={"on": True}).json()["off"] is None


def test_a_critical_finding_is_worked_off_by_the_api(client: Any, browser: Any) -> None:
    study = client.send(("pneumothorax.png", png(21)))["studies"][0]["study"]
    path = f"/api/v1/studies/{study}/communications"
    assert study in [alert["study"] for alert in client("GET", "/api/v1/critical").json()]
    strip = browser.get("/").text
    Page(strip)
    assert f'data-critical="{study}"' in strip
    assert f'data-critical="{study}"' in browser.get(f"/studies/{study}").text
    for body, said in (
        ({"kind": "communicated", "recipient": "Sister M", "how": "phone"}, "read_back"),
        ({"kind": "communicated", "recipient": "Sister M", "read_back": True}, "how"),
        ({"kind": "communicated", "recipient": "", "how": "phone", "read_back": True}, "recipient"),
        (
            {"kind": "communicated", "recipient": "M", "how": "phone", "read_back": True, "at": "2026-01-31T08:00:00"},
            "zone",
        ),
        ({"kind": "closed"}, "note"),
    ):
        answer = client("POST", path, "radiologist", json=body)
        assert answer.status_code in (400, 422)
        assert said in answer.text
    assert client("POST", path, "engineer", json={"kind": "acknowledged"}).status_code == 403
    said = client("POST", path, "radiologist", json={"kind": "acknowledged"}).json()
    assert (said["alert"]["stage"], said["communications"][0]["actor"]) == ("sign", "radiologist")
    signed = {"state": "signed", "findings": [{"finding": "Pneumothorax", "answer": "agree"}]}
    assert client("POST", f"/api/v1/studies/{study}/reviews", "radiologist", json=signed).status_code == 201
    assert client("GET", path).json()["alert"]["stage"] == "tell"
    body = {"kind": "communicated", "recipient": "Sister M", "how": "in person", "read_back": False, "note": "n"}
    said = client("POST", path, "radiologist", json=body).json()
    assert said["alert"] is None
    assert said["communications"][-1]["recipient"] == "Sister M"
    assert f'data-critical="{study}"' not in browser.get("/").text
    assert client("POST", path, "radiologist", json={"kind": "acknowledged"}).status_code == 409
    with client.clinic.database.read() as connection:
        rows = connection.execute(sa.select(store.audit.c.action).where(store.audit.c.object == study)).scalars()
        assert {"critical.raised", "critical.acknowledged", "critical.communicated"} <= set(rows)
