"""An engineer sees studies and never who they are of, whichever way they ask; everybody else who may look does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.testclient import TestClient
from ward import NameReader, dicom
from web.authorisation import TABLE
from web.conftest import BASE, Client

from wetread.config import Settings
from wetread.web.app import create_app

PATIENT = {
    "PatientName": "Zebedee^Quixote",
    "PatientID": "MRN55512",
    "AccessionNumber": "ACC99871",
    "PatientBirthDate": "19610412",
    "WindowCenterWidthExplanation": "Zebedee's own",
}
SECRETS = ("Zebedee", "Quixote", "MRN55512", "ACC99871", "19610412", "1961-04-12", "Strangelove")
UIDS = {"study": "1.2.6.1", "series": "1.2.6.2", "instance": "1.2.6.3"}


@dataclass(frozen=True)
class Asked:
    """A clinic with a study of a patient, a prior of theirs, and the names by which both are asked for."""

    client: Client
    names: dict[str, str]

    def url(self, path: str) -> str:
        names = self.names | UIDS if path.startswith("/dicomweb") else self.names
        return path.format_map(defaultdict(lambda: "1", names))

    def get(self, path: str, role: str, **more: Any) -> Any:
        params = {"finding": "Edema"} if "heatmap" in path else {}
        return self.client("GET", self.url(path), role, params=params, **more)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    app = create_app(tmp_path_factory.mktemp("clinic"), Settings(threads=1, ohif="https://ohif"), models=[NameReader()])
    with TestClient(app, base_url=BASE) as http:
        client = Client(app, http)
        client.send(("Strangelove prior.dcm", dicom(6, **PATIENT, StudyInstanceUID="1.9", SOPInstanceUID="1.9.3")))
        sent = client.send(("edema of Zebedee.dcm", dicom(5, **PATIENT)))
        study, image = sent["studies"][0]["study"], sent["images"][0]["image"]
        note = {"state": "signed", "note": "told Quixote's ward", "findings": [{"finding": "Edema", "answer": "agree"}]}
        assert client("POST", f"/api/v1/studies/{study}/reviews", "radiologist", json=note).status_code == 201  # type: ignore[attr-defined]
        reason = {"birth_date": "1961-04-12", "sex": "F", "reason": "Zebedee is a woman"}
        assert client("POST", f"/api/v1/studies/{study}/patient", json=reason).status_code == 200  # type: ignore[attr-defined]
        yield Asked(client, {"study": study, "image": image, "model": NameReader().id, "tag": "7FE00010"})


def reads() -> list[str]:
    """Return what can be asked of a study, its images and the lists."""
    return [path for method, path in TABLE if method == "GET" and path != "/events" and not path.startswith("/login")]


@pytest.mark.parametrize("path", reads())
def test_no_answer_names_the_patient_to_an_engineer(asked: Asked, path: str) -> None:
    response = asked.get(path, "engineer", headers={"Accept": "*/*"})
    assert response.status_code < 500, response.text
    for secret in SECRETS:
        assert secret.encode() not in response.content, secret
        assert secret not in str(response.headers), secret
    rule = TABLE["GET", path]
    if rule.names:
        assert response.status_code == 403
        assert "may not see who patients are" in response.json()["detail"]


def test_those_who_may_see_patients_are_told(asked: Asked) -> None:
    for path in ("/", "/studies/{study}", "/studies/{study}/history", "/studies/{study}/report",
                 "/api/v1/studies/{study}", "/api/v1/studies/{study}/fhir", "/dicomweb/studies"):  # fmt: skip
        for role in ("radiologist", "administrator", "service"):
            content = asked.get(path, role, headers={"Accept": "*/*"}).content
            assert b"Zebedee" in content or b"MRN55512" in content, (path, role)


def test_an_engineer_sees_all_else_of_the_study(asked: Asked) -> None:
    found = asked.get("/api/v1/studies/{study}", "engineer").json()
    assert (found["sex"], found["patient_id"], found["birth_date"], found["accession"]) == ("F", "", None, None)
    assert found["findings"]
    assert found["reviews"][0]["note"] == "not shown to your role"
    assert found["images"][0]["name"] == f"image {asked.names['image'][:8]}"
    page = asked.get("/studies/{study}", "engineer").text
    assert "not shown to your role" in page
    assert "https://ohif" not in page
    assert "https://ohif" in asked.get("/studies/{study}", "radiologist").text
