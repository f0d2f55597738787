"""Outputs over HTTP: to fetch, to see what has not arrived, to try again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from io import BytesIO
from typing import Any

import highdicom as hd
import peers
import pydicom
import pytest
import receivers
from fhir.resources.R4B.bundle import Bundle
from starlette.testclient import TestClient
from ward import NameReader, dicom, png

from wetread.clinic import access, delivery
from wetread.config import Settings
from wetread.web import security
from wetread.web.app import create_app

BASE = "http://127.0.0.1"


class Site:
    """A running application that tells critical findings to a receiver that fails at first."""

    def __init__(self, http: TestClient, receiver: receivers.Receiver) -> None:
        self.http, self.receiver, self.clinic = http, receiver, http.app.state.clinic  # type: ignore[attr-defined]
        self.tokens = {role: access.create(self.clinic.database, role, role, "default") for role in access.Role}

    def __call__(self, method: str, path: str, role: str = "administrator", **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.tokens[access.Role(role)]}"} | more.pop("headers", {})
        return self.http.request(method, path, headers=headers, **more)

    def send(self, content: bytes, name: str) -> str:
        answer = self("POST", "/api/v1/studies?wait=20", files=[("files", (name, content))])
        return str(answer.json()["studies"][0]["study"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("clinic")
    (folder / "secret").write_text("swordfish")
    with receivers.http((503, b"")) as receiver:
        to = f"http://127.0.0.1:{receiver.port}/hook#secret-file={folder / 'secret'}"
        settings = Settings(outputs_webhook=[to], outputs_tries=1)
        with TestClient(create_app(folder / "data", settings, models=[NameReader()]), base_url=BASE) as http:
            yield Site(http, receiver)


def test_a_study_can_be_fetched_as_sr_sc_and_fhir(site: Site) -> None:
    study = site.send(dicom(1, PatientName="Doe^Jane"), "edema.dcm")
    answer = site("GET", f"/api/v1/studies/{study}/sr", "radiologist")
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/dicom")
    assert isinstance(hd.sr.srread(BytesIO(answer.content)), hd.sr.ComprehensiveSR)
    answer = site("GET", f"/api/v1/studies/{study}/sc", "radiologist")
    assert answer.headers["Wetread-Count"] == "1"
    assert pydicom.dcmread(BytesIO(answer.content)).BurnedInAnnotation == "YES"
    assert site("GET", f"/api/v1/studies/{study}/sc?number=2").status_code == 404
    answer = site("GET", f"/api/v1/studies/{study}/fhir", "radiologist")
    assert answer.headers["Content-Type"] == "application/fhir+json"
    Bundle.model_validate_json(json.dumps(answer.json()))
    for part in ("sr", "sc", "fhir"):
        assert site("GET", f"/api/v1/studies/{'0' * 8}/{part}").status_code == 404


@pytest.mark.parametrize("seconds", [0.0, 3600.0])
def test_a_signature_that_can_be_taken_back_is_not_final(
    site: Site, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(site.clinic, "undo", timedelta(seconds=seconds))
    study = site.send(dicom(20 + int(seconds > 0)), "edema.dcm")
    body = {"state": "signed", "findings": [{"finding": "Edema", "answer": "agree"}]}
    review = site("POST", f"/api/v1/studies/{study}/reviews", "radiologist", json=body).json()
    later = datetime.fromisoformat(review["final_at"]) - datetime.fromisoformat(review["signed_at"])
    assert later.total_seconds() == seconds
    bundle = site("GET", f"/api/v1/studies/{study}/fhir", "radiologist").json()
    Bundle.model_validate_json(json.dumps(bundle))
    resources = [entry["resource"] for entry in bundle["entry"]]
    said = {
        resource["status"]
        for resource in resources
        if resource["resourceType"] == "DiagnosticReport" or resource.get("performer")
    }
    assert said == {"preliminary" if seconds else "final"}
    page = site("GET", f"/studies/{study}/report", "radiologist").text
    assert ("can still be taken back" in page) is bool(seconds)


def test_a_picture_has_fhir_only_and_says_why(site: Site) -> None:
    study = site.send(png(7), "edema.png")
    for part in ("sr", "sc"):
        answer = site("GET", f"/api/v1/studies/{study}/{part}")
        assert answer.status_code == 422
        assert "no DICOM image" in answer.json()["detail"]
    assert site("GET", f"/api/v1/studies/{study}/fhir").status_code == 200


def test_a_study_that_no_model_analysed_has_nothing_to_say(site: Site) -> None:
    study = site.send(dicom(2), "lateral.dcm")
    for part in ("sr", "sc", "fhir"):
        answer = site("GET", f"/api/v1/studies/{study}/{part}")
        assert answer.status_code == 404
        assert "no model analysed it" in answer.json()["detail"]


def given_up(site: Site) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = site("GET", "/api/v1/deliveries?state=given_up").json()
    return found


def test_what_has_not_arrived_is_seen_everywhere_and_can_be_tried_again(site: Site) -> None:
    site.send(dicom(3, PatientName="Doe^Jane"), "pneumothorax.dcm")
    [row] = peers.wait(lambda: given_up(site), "the delivery to be given up")
    assert row["kind"] == "webhook"
    assert "answered 503" in row["error"]
    assert "secret" not in row["destination"]
    metrics = site.http.get("/metrics").text
    assert 'wetread_undelivered{kind="webhook",state="given_up"} 1.0' in metrics
    assert 'wetread_deliveries_total{kind="webhook",outcome="given_up"}' in metrics
    # The page, as a browser has it.
    database = site.clinic.database
    session = access.login(database, access.login_code(database, "root", access.Role.ADMINISTRATOR, "default"))
    site.http.cookies.set(security.COOKIE, session)
    try:
        assert "1 result has not reached other systems." in site.http.get("/").text
        page = site.http.get("/deliveries").text
        assert "given up" in page
        assert "answered 503" in page
        assert "Doe" not in page
        csrf = security.csrf_token(session)
        refused = site.http.post(f"/deliveries/{row['id']}/retry", data={"csrf": "wrong"})
        assert refused.status_code == 403
        site.receiver.answers[:] = [(200, b"")]
        tried = site.http.post(f"/deliveries/{row['id']}/retry", data={"csrf": csrf}, follow_redirects=False)
        assert (tried.status_code, tried.headers["Location"]) == (303, "/deliveries")
    finally:
        site.http.cookies.clear()
    peers.wait(lambda: not given_up(site), "the retry")
    sent = peers.wait(lambda: site("GET", "/api/v1/deliveries?state=sent").json(), "the delivery to be sent")
    assert sent[0]["id"] == row["id"]
    assert site("POST", f"/api/v1/deliveries/{row['id']}/retry").status_code == 409
    assert site("DELETE", f"/api/v1/deliveries/{row['id']}").status_code == 409
    assert site("DELETE", "/api/v1/deliveries/none").status_code == 404
    assert site("GET", "/api/v1/deliveries", "radiologist").status_code == 403
    assert site("GET", "/api/v1/deliveries?state=lost").status_code == 422


def test_delivery_of_another_site_is_unknown(site: Site) -> None:
    other = access.create(site.clinic.database, "stranger", "engineer", "elsewhere")
    for row in delivery.listing(site.clinic.database, "default", states=("sent", "given_up")):
        answer = site.http.post(f"/api/v1/deliveries/{row.id}/retry", headers={"Authorization": f"Bearer {other}"})
        assert answer.status_code == 404
