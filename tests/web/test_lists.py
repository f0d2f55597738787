"""The worklist over HTTP: its orders and filters in the address, what is searched for in a header, who hands over."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from fastapi.testclient import TestClient
from page import Page
from ward import NameReader, dicom

from wetread.clinic import access, audit
from wetread.clinic.access import Role
from wetread.config import Settings
from wetread.web.app import create_app
from wetread.web.security import COOKIE, csrf_token

BASE = "http://127.0.0.1"
PATIENTS = {  # name, ID, accession, age, description, file
    "a": ("Müller^Jörg", "47-11 A", "ACC-1", "063Y", "Thorax", "edema.dcm"),
    "b": ("Muller^Ann", "4711 B", "ACC-2", "009Y", "Chest", "nothing.dcm"),
    "c": ("Zed^Zoë", "P-3", "ACC-3", "081Y", None, "pneumothorax.dcm"),
}


class Browser:
    """Somebody who is signed in."""

    def __init__(self, app: Any, name: str, role: Role = Role.RADIOLOGIST) -> None:
        self.http = TestClient(app, base_url=BASE)
        code = access.login_code(app.state.clinic.database, name, role, "default")
        self.http.post("/login", data={"code": code})
        self.csrf = csrf_token(self.http.cookies[COOKIE])
        self.http.headers["X-CSRF-Token"] = self.csrf

    def get(self, path: str, search: str = "", **more: Any) -> Any:
        headers = {"Wetread-Search": quote(search)} if search else {}
        return self.http.get(path, headers=headers, **more)

    def names(self, path: str = "/", search: str = "") -> list[str]:
        """Return who is in the list, in its order."""
        text = self.get(path, search).text
        Page(text)
        return [html.unescape(n).split(",")[0] for n in re.findall(r'class="patient" href="[^"]*">([^<]*)<', text)]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    app = create_app(tmp_path_factory.mktemp("clinic"), Settings(claim_minutes=7.0), models=[NameReader()])
    with TestClient(app, base_url=BASE):
        yield app


@pytest.fixture(scope="module")
def dr(app: Any) -> Browser:
    """Sign in and send the patients."""
    dr = Browser(app, "Dr N")
    for n, (name, patient, accession, age, description, file) in enumerate(PATIENTS.values()):
        content = dicom(
            n, PatientName=name, PatientID=patient, AccessionNumber=accession, PatientAge=age,
            BodyPartExamined="CHEST", SpecificCharacterSet="ISO_IR 192",
            **({"StudyDescription": description} if description else {}),
        )  # fmt: skip
        sent = dr.http.post("/api/v1/studies?wait=20", files=[("files", (file, content))])
        assert sent.status_code == 201, sent.text
    return dr


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/", ["Zed", "Müller", "Muller"]),
        ("/?sort=patient", ["Muller", "Müller", "Zed"]),
        ("/?sort=patient&down=1", ["Zed", "Müller", "Muller"]),
        ("/?sort=age", ["Muller", "Müller", "Zed"]),
        ("/?sort=study", ["Muller", "Zed", "Müller"]),  # Chest, CHEST (the body part), Thorax
        ("/?sort=arrived", ["Müller", "Muller", "Zed"]),
        ("/?finding=Edema", ["Müller"]),
        ("/?age_from=10&age_to=70", ["Müller"]),
        ("/?age_to=9", ["Muller"]),
        ("/?view=unknown", []),
        ("/?since=2001-01-01&until=2002-01-01&zone=Europe/Berlin", []),
        ("/?since=2001-01-01&zone=Pacific/Auckland", ["Zed", "Müller", "Muller"]),
        ("/?class=critical&finding=Edema", []),
        ("/?class=overdue", []),
        ("/?class=read", []),
    ],
)
def test_the_address_says_what_the_list_shows(dr: Browser, path: str, wanted: list[str]) -> None:
    assert dr.names(path) == wanted


@pytest.mark.parametrize(
    ("search", "wanted"),
    [
        ("mul", ["Müller", "Muller"]), ("MÜLLER, J", ["Müller"]), ("ann muller", ["Muller"]),
        ("4711", ["Müller", "Muller"]), ("47 11a", ["Müller"]), ("acc3", ["Zed"]), ("ül", []), ("-", []), ("%", []),
    ],
)  # fmt: skip
def test_a_search_finds_beginnings(dr: Browser, search: str, wanted: list[str]) -> None:
    assert dr.names("/", search) == wanted
    found = dr.get("/api/v1/worklist", search).json()["studies"]
    assert [row["patient_name"].split(",")[0] for row in found] == wanted


def test_what_is_searched_for_comes_back_in_no_address(dr: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wetread.web.worklist.PAGE", 1)
    text = dr.get("/?sort=patient", "mül").text
    page = Page(text)
    (following,) = [link for link in page.requests if "from=" in link]
    assert not any(word in link.lower() for link in page.requests for word in ("mul", "m%c3%bc", "4711"))
    assert dr.names(following, "mül") == ["Müller"]
    assert dr.names(following) == ["Müller"]


def test_each_heading_leads_to_its_order_and_then_to_the_other_way_round(dr: Browser) -> None:
    first = dr.get("/?class=unread&finding=Edema").text
    links = dict(re.findall(r'<th[^>]*><a href="([^"]*)">(\w+)', first))
    by = {word: parse_qs(urlsplit(html.unescape(link)).query) for link, word in links.items()}
    assert by["Patient"] == {"class": ["unread"], "finding": ["Edema"], "sort": ["patient"]}
    assert by["Priority"] == {"class": ["unread"], "finding": ["Edema"], "sort": ["priority"], "down": ["1"]}
    assert 'aria-sort="ascending"' in first
    again = dr.get("/?sort=patient&down=1").text
    assert 'aria-sort="descending"' in again
    (back,) = re.findall(r'<a href="([^"]*)">Patient', again)
    assert "down" not in back
    read = dr.get("/?class=read").text
    assert "sort=due" not in read


@pytest.mark.parametrize(
    "path",
    ["/?sort=shoe", "/?age_from=old", "/?age_from=nan", "/?since=yesterday", "/?until=9999-12-31", "/?view=NO",
     "/?from=x", "/?class=read&sort=due", "/?status=lost"],
)  # fmt: skip
def test_an_address_that_cannot_be_leads_back_to_the_list(dr: Browser, path: str) -> None:
    answer = dr.get(path, follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"] in ("/?class=unread", "/?class=read")
    assert dr.get(answer.headers["location"]).status_code == 200


def test_the_api_has_the_same_orders_and_names_what_cannot_be(dr: Browser) -> None:
    found = dr.get("/api/v1/worklist?sort=age&descending=true&limit=2").json()
    assert [row["age_years"] for row in found["studies"]] == [81.0, 63.0]
    assert found["studies"][0]["title"] == "CHEST"
    more = dr.get("/api/v1/worklist", params={"sort": "age", "descending": True, "after": found["next"]}).json()
    assert [row["age_years"] for row in more["studies"]] == [9.0]
    for bad in ("sort=x", "view=x", "since=2001-01-01T00:00:00", "since=0001-01-01T00:00:00%2B14:00", "after=x"):
        answer = dr.get(f"/api/v1/worklist?{bad}")
        assert answer.status_code in (400, 422), bad
        assert bad.split("=")[0] in answer.json()["detail"]


def test_filters_are_kept_for_their_reader_without_a_search(app: Any, dr: Browser) -> None:
    query = {"class": "urgent", "finding": "Edema"}
    assert dr.http.put("/api/v1/filters/wet lungs", json={"query": query}).json() == {
        "name": "wet lungs",
        "query": query,
    }
    assert dr.get("/api/v1/filters").json() == [{"name": "wet lungs", "query": query}]
    text = dr.get("/").text
    (link,) = re.findall(r'<a class="button" href="([^"]*)">wet lungs', text)
    assert dr.names(html.unescape(link)) == ["Müller"]
    assert "wet lungs" not in Browser(app, "Dr O").get("/").text
    for bad in ({"search": "Müller"}, {"from": "x"}, {"sort": "shoe"}):
        assert dr.http.put("/api/v1/filters/bad", json={"query": bad}).status_code in (400, 422)
    assert dr.http.delete("/api/v1/filters/wet lungs").status_code == 204
    assert dr.http.delete("/api/v1/filters/wet lungs").status_code == 404


def test_a_study_goes_from_one_reader_to_another(app: Any, dr: Browser) -> None:
    other = Browser(app, "Dr M")
    row = dr.get("/api/v1/worklist?finding=Edema").json()["studies"][0]
    study = row["study"]
    assert "Dr M" in dr.get("/api/v1/readers").json()
    assert "Dr N" not in dr.get("/api/v1/readers").json()
    assert dr.http.post(f"/api/v1/studies/{study}/claim").status_code == 200
    claim = dr.get(f"/api/v1/studies/{study}").json()["claim"]
    minutes = _minutes(claim["at"], claim["expires_at"])
    assert minutes == pytest.approx(7, abs=0.2)
    assert dr.names("/?class=mine") == ["Müller"]
    assert dr.http.post(f"/api/v1/studies/{study}/hand-over", json={"to": "nobody"}).status_code == 422
    given = dr.http.post(f"/api/v1/studies/{study}/hand-over", json={"to": "Dr M"})
    assert (given.json()["claimed_by"], given.json()["handed_by"]) == ("Dr M", "Dr N")
    assert dr.names("/?class=mine") == []
    text = other.get("/?class=mine").text
    assert "Dr N handed a study over to you" in html.unescape(text)
    assert f'href="/studies/{study}">Open it' in text
    assert "from Dr N" in text
    assert dr.http.post(f"/api/v1/studies/{study}/claim").status_code == 409
    assert other.http.post(f"/api/v1/studies/{study}/claim").status_code == 200
    assert "handed a study over" not in other.get("/").text
    assert other.http.delete(f"/api/v1/studies/{study}/claim").status_code == 200
    handed = audit.rows(app.state.clinic.database, action="study.handed_over")
    assert [(deed["actor"], deed["object"]) for deed in handed] == [("Dr N", study)]


def _minutes(start: str, end: str) -> float:
    from datetime import datetime

    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() / 60


RULE = """
[critical]
findings = ["Edema"]
cap_minutes = 30
[urgent]
findings = []
cap_minutes = 120
"""


class TestRule:
    def test_another_rule_is_tried_and_nothing_is_changed(self, app: Any, dr: Browser) -> None:
        admin = Browser(app, "Admin", Role.ADMINISTRATOR)
        before = dr.names("/")
        empty = admin.get("/settings/rule")
        assert "[critical]" in html.unescape(empty.text)
        assert "cap_minutes = 240" in empty.text
        text = admin.http.post("/settings/rule", data={"csrf": admin.csrf, "toml": RULE}).text
        Page(text)
        assert "3 studies, 0 of them read; 2 change their class" in text
        assert "Edema likely" in text
        assert "Read earlier: 2" in text
        assert "Read later: 1" in text
        assert dr.names("/") == before
        file = {"file": ("rule.toml", RULE.encode())}
        assert "Read earlier: 2" in admin.http.post("/settings/rule", data={"csrf": admin.csrf}, files=file).text

    def test_a_rule_that_is_none_is_named_and_kept_for_correction(self, app: Any, dr: Browser) -> None:
        admin = Browser(app, "Admin 2", Role.ADMINISTRATOR)
        answer = admin.http.post("/settings/rule", data={"csrf": admin.csrf, "toml": "[critical]\ncap_minutes = 0"})
        assert answer.status_code == 422
        assert "critical.cap_minutes" in answer.text
        assert "cap_minutes = 0" in answer.text

    def test_only_administrators_and_only_from_our_own_page(self, app: Any, dr: Browser) -> None:
        admin = Browser(app, "Admin 3", Role.ADMINISTRATOR)
        assert dr.get("/settings/rule").status_code == 403
        assert dr.http.post("/settings/rule", data={"csrf": dr.csrf, "toml": RULE}).status_code == 403
        assert admin.http.post("/settings/rule", data={"toml": RULE}).status_code == 403


def test_an_engineers_list_tells_no_patient(app: Any, dr: Browser) -> None:
    engineer = Browser(app, "Eng", Role.ENGINEER)
    for path in ("/", "/?sort=patient", "/api/v1/worklist"):
        text = engineer.get(path).text
        assert not any(word in text for word in ("Müller", "Muller", "Zed", "4711", "47-11"))
    assert [name[:6] for name in engineer.names("/")] == ["study "] * 3
    assert 'id="search"' not in engineer.get("/").text
    assert len(engineer.names("/", "mul")) == 3  # is not looked for
    assert engineer.get("/api/v1/worklist", "mul").status_code == 403
