"""What those see who keep it running, and a full disk as senders see it."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from typing import Any

import pytest
import sqlalchemy as sa
from ward import dicom, png

from wetread.clinic import access, store
from wetread.config import Settings


@pytest.fixture(scope="module")
def settings() -> Settings:
    return Settings(job_tries=1)


@pytest.fixture
def own(client: Any) -> Any:
    """The clinic of this module, whose model fails on what is called poison."""
    client.model = next(iter(client.clinic.models.values()))
    client.model.heal = False
    return client


def test_what_was_set_aside_shows_why_and_is_tried_again(own: Any) -> None:
    study = own.send(("poison.png", png(1)))["studies"][0]["study"]
    state = own("GET", "/api/v1/operations").json()
    [aside] = state["aside"]
    assert (aside["study"], aside["tries"], aside["reason"]) == (study, 1, "RuntimeError: the runtime broke")
    assert state["has_room"]
    assert state["free_bytes"] > 0
    assert [process["kind"] for process in state["processes"]] == ["serve"]
    assert 'wetread_jobs{state="aside"} 1.0' in own("GET", "/metrics").text
    for role, status in (("radiologist", 403), ("service", 403), ("engineer", 200)):
        own.model.heal = role == "engineer"
        assert own("POST", f"/api/v1/images/{aside['image']}/retry", role).status_code == status
    own.send(("edema.png", png(2)))  # waits for the analysis, as the other had to
    found = own("GET", f"/api/v1/studies/{study}").json()
    assert found["status"] == "analysed"
    with own.clinic.database.read() as connection:
        done = connection.execute(sa.select(store.audit.c.actor).where(store.audit.c.action == "image.retried"))
        assert list(done.scalars()) == ["engineer"]
    assert own("POST", f"/api/v1/images/{aside['image']}/retry").status_code == 409
    assert own("POST", "/api/v1/images/none/retry").status_code == 404
    assert own("GET", "/api/v1/operations").json()["aside"] == []


def test_the_pages_have_a_button_for_those_who_may(own: Any) -> None:
    study = own.send(("poison.png", png(11)))["studies"][0]["study"]
    code = access.login_code(own.clinic.database, "operator", access.Role.ADMINISTRATOR, "default")
    own.http.get("/login", params={"code": code})
    own.http.post("/login", data={"code": code})
    operations, page = own.http.get("/operations").text, own.http.get(f"/studies/{study}").text
    assert "RuntimeError: the runtime broke" in operations
    button = re.search(
        r'action="(/images/[^"]+/retry\?study=[^"]+)"><input type="hidden" name="csrf" value="(.+?)"', page
    )
    assert button is not None
    assert button[1].split("?")[0] in operations
    assert own.http.post(button[1], data={"csrf": "wrong"}, follow_redirects=False).status_code == 403
    answer = own.http.post(button[1], data={"csrf": button[2]}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/studies/{study}")
    assert own("GET", f"/studies/{study}", "radiologist").status_code == 200
    assert "/retry" not in own("GET", f"/studies/{study}", "radiologist").text


def test_the_parts_of_the_page_come_alone(own: Any) -> None:
    own.send(("edema.png", png(41)))
    whole = own("GET", "/operations").text
    now = own("GET", "/operations", headers={"HX-Target": "now"}).text
    flow = own("GET", "/operations", headers={"HX-Target": "flow"}).text
    assert {"now", "flow"} == set(re.findall(r'<div id="(now|flow)"', whole))
    assert (now.count("<div id="), flow.count("<div id="), "<html" in now + flow) == (1, 1, False)
    assert "Set aside" in now
    assert "Throughput" not in now
    assert "Throughput" in flow
    assert "<!doctype" in own("GET", "/operations", headers={"HX-Target": "../x"}).text


def test_a_full_disk_is_said_before_anything_is_kept(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own.send(("edema.png", png(21)))
    before = sorted(own.clinic.data.rglob("*"))
    full = Settings(disk_reserve=2.0**70)
    monkeypatch.setattr(own.clinic, "settings", full)
    monkeypatch.setattr(own.clinic.archive, "reserve", full.disk_reserve)
    answer = own("POST", "/api/v1/studies", files=[("files", ("a.png", png(22)))])
    assert (answer.status_code, answer.headers["content-type"]) == (507, "application/problem+json")
    assert "disk_reserve" in answer.json()["detail"]
    boundary = "x"
    part = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + dicom(3) + b"\r\n--x--\r\n"
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    answer = own("POST", "/dicomweb/studies", content=part, headers={"Content-Type": kind})
    assert answer.status_code == 507
    ready = own("GET", "/readyz")
    assert (ready.status_code, "reserve" in ready.json()["detail"]) == (503, True)
    assert "wetread_has_room 0.0" in own("GET", "/metrics").text
    assert own("GET", "/api/v1/operations").json()["has_room"] is False
    assert sorted(own.clinic.data.rglob("*")) == before
    assert own("GET", "/healthz").status_code == 200
    assert own("GET", "/api/v1/worklist").status_code == 200  # what is there can be read
    monkeypatch.undo()
    assert own("POST", "/api/v1/studies", files=[("files", ("a.png", png(22)))]).status_code == 201


def test_a_disk_that_fills_up_while_a_body_is_read_is_said_too(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = own.clinic.intake.archive.names()
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", full)
    answer = own("POST", "/api/v1/studies", files=[("files", ("a.png", png(31)))])
    assert (answer.status_code, "disk is full" in answer.json()["detail"]) == (507, True)
    monkeypatch.undo()
    assert sorted(before) == sorted(own.clinic.archive.names())
