"""Reading blind: no answer of the server tells a reader what the model said before they have said what they see."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from ward import SITE, NameReader, dicom
from web.authorisation import TABLE
from web.conftest import BASE, Client

from wetread.clinic import access, blind, store
from wetread.config import Settings
from wetread.infer.predict import Analysis, FindingResult
from wetread.web import events
from wetread.web.app import create_app

FINDING, SCORE = "Zebra sign", 0.873125
SECRETS = (FINDING, "0.873", "0.87</dd>", "Zebra")


class Zebra(NameReader):
    """Says what nobody else would, so that it is found wherever it is told."""

    def analyse(self, path: Path, name: str) -> Analysis:
        said = super().analyse(path, name)
        first = FindingResult(FINDING, SCORE, 0.5, True, "likely")
        return replace(said, findings=(first, *said.findings[1:]), abnormal=SCORE)


def opened(folder: Path, **settings: object) -> FastAPI:
    return create_app(folder, Settings.model_validate(settings), models=[Zebra()])


@pytest.fixture(params=[{"blind_sites": ["default"]}, {"sample_share": 1.0}], ids=["site", "sample"])
def client(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Client]:
    app = opened(tmp_path, **request.param)
    with TestClient(app, base_url=BASE) as http:
        yield Client(app, http)


def answers(client: Client, study: str, image: str, role: str) -> dict[str, tuple[int, str]]:
    """Ask every route that can be read about a study, its image, or the list; return status and text of each."""
    names = {"{study}": study, "{image}": image, "{model}": "names"}
    found = {}
    for method, path in TABLE:
        url = path
        for name, value in names.items():
            url = url.replace(name, value)
        if method != "GET" or "{" in url or path in ("/events", "/metrics") or path.startswith("/login"):
            continue
        response = client("GET", url, role, params={"finding": FINDING} if "heatmap" in path else {})
        found[path] = (response.status_code, response.text)  # type: ignore[attr-defined]
    return found


def test_no_route_tells_before_the_own_call_and_each_tells_afterwards(client: Client) -> None:
    sent = client.send(("zebra.dcm", dicom(7)))
    study, image = sent["studies"][0]["study"], sent["images"][0]["image"]
    told = {path for path, (_, text) in answers(client, study, image, "engineer").items() if FINDING in text}
    assert {"/api/v1/studies/{study}", "/api/v1/worklist", "/api/v1/images/{image}/heatmap"} <= told
    for path, (status, text) in answers(client, study, image, "radiologist").items():
        assert status < 500, (path, text)
        assert not any(secret in text for secret in SECRETS), path
    listed = client("GET", "/api/v1/worklist", "radiologist", params={"finding": FINDING}).json()  # type: ignore[attr-defined]
    assert listed["studies"] == []
    claimed = client("POST", f"/api/v1/studies/{study}/claim", "radiologist")
    again = client("POST", "/api/v1/studies", "radiologist", files=[("files", ("zebra.dcm", dicom(7)))])
    for response in (claimed, again):
        assert response.status_code < 300  # type: ignore[attr-defined]
        assert FINDING not in response.text  # type: ignore[attr-defined]

    url = f"/api/v1/studies/{study}"
    for body in ({"state": "signed"}, {"state": "draft", "findings": [{"finding": FINDING, "answer": "agree"}]}):
        refused = client("POST", f"{url}/reviews", "radiologist", json=body)
        assert refused.status_code == 409  # type: ignore[attr-defined]
        assert "own call" in refused.text  # type: ignore[attr-defined]
    kept = client("POST", f"{url}/reviews", "radiologist", json={"state": "draft", "note": "hm"})
    assert kept.status_code == 201  # type: ignore[attr-defined]
    call = {"normal": False, "findings": ["Edema"]}
    said = client("POST", f"{url}/own-call", "radiologist", json=call)
    assert said.status_code == 201, said.text  # type: ignore[attr-defined]
    assert client("POST", f"{url}/own-call", "radiologist", json=call).status_code == 409  # type: ignore[attr-defined]

    after = {path for path, (_, text) in answers(client, study, image, "radiologist").items() if FINDING in text}
    assert {"/studies/{study}", "/api/v1/studies/{study}", "/api/v1/images/{image}/heatmap"} <= after
    given = [{"finding": FINDING, "answer": "agree"}, {"finding": "Edema", "answer": "added"}]
    body = {"state": "signed", "findings": given}
    review = client("POST", f"{url}/reviews", "radiologist", json=body).json()  # type: ignore[attr-defined]
    assert (review["anchored"], review["own_call"], review["state"]) == (False, call, "signed")
    assert review["own_call_at"] < review["signed_at"]


def test_our_own_result_that_came_back_is_no_instance_before_the_own_call(client: Client) -> None:
    study = client.send(("zebra.dcm", dicom(11)))["studies"][0]["study"]
    report = client("GET", f"/api/v1/studies/{study}/sr", "service").content  # type: ignore[attr-defined]
    assert FINDING.encode() in report
    client.send(("sr.dcm", report))
    own = str(pydicom.dcmread(BytesIO(report)).SOPInstanceUID)
    assert own.startswith("2.25.")
    paths = ["/studies", "/series", "/instances", "/studies/1.2.12.1/metadata", "/studies/1.2.12.1/series",
             "/studies/1.2.12.1/instances", "/studies/1.2.12.1"]  # fmt: skip

    def counted(role: str) -> list[int]:
        """Ask all that lists instances; return how many answers name ours, and how many instances the study has."""
        found = 0
        for path in paths:
            accept = {"Accept": 'multipart/related; type="application/dicom"' if path[-1] == "1" else "*/*"}
            response = client("GET", f"/dicomweb{path}", role, headers=accept)
            assert response.status_code == 200, response.text  # type: ignore[attr-defined]
            content = response.content  # type: ignore[attr-defined]
            found += own.encode() in content or FINDING.encode() in content or b'"SR"' in content
        listed = client("GET", "/dicomweb/studies", role, params={"StudyInstanceUID": "1.2.12.1"}).json()  # type: ignore[attr-defined]
        return [found, listed[0]["00201208"]["Value"][0]]

    place = f"/dicomweb/studies/1.2.12.1/instances?SOPInstanceUID={own}"
    assert counted("radiologist") == [0, 1]
    assert client("GET", place, "radiologist").json() == []  # type: ignore[attr-defined]
    assert counted("service") == [7, 2]
    client("POST", f"/api/v1/studies/{study}/own-call", "radiologist", json={"normal": True})
    assert counted("radiologist") == [7, 2]
    assert len(client("GET", place, "radiologist").json()) == 1  # type: ignore[attr-defined]


def test_a_list_sorted_by_finding_does_not_tell_which_are_read_blind(client: Client) -> None:
    client.send(("zebra.dcm", dicom(12)), ("zebra.dcm", dicom(13)))
    asked: dict[str, object] = {"sort": "why", "limit": 1}
    plain = client("GET", "/api/v1/worklist", "radiologist").json()["studies"]  # type: ignore[attr-defined]
    listed = []
    for _ in range(2):  # nothing is hidden but why
        seen = client("GET", "/api/v1/worklist", "radiologist", params=asked).json()  # type: ignore[attr-defined]
        assert FINDING not in str(seen)
        listed += seen["studies"]
        if seen["next"]:
            assert FINDING not in base64.urlsafe_b64decode(seen["next"]).decode()
            asked["after"] = seen["next"]
    assert [row["study"] for row in listed] == [row["study"] for row in plain]
    assert len(listed) == seen["counts"]["unread"] == 2
    page = client("GET", "/?sort=why", "radiologist").text  # type: ignore[attr-defined]
    assert all(row["study"] in page for row in listed)
    assert FINDING not in page
    forged = base64.urlsafe_b64encode(json.dumps(["why", 0, None, 0, 0.0, listed[0]["study"]]).encode()).decode()
    for role, status in (("radiologist", 422), ("engineer", 200)):
        params = {"sort": "why", "after": forged}
        assert client("GET", "/api/v1/worklist", role, params=params).status_code == status  # type: ignore[attr-defined]
    call = client("POST", f"/api/v1/studies/{plain[1]['study']}/own-call", "radiologist", json={"normal": True})
    assert call.status_code == 201  # type: ignore[attr-defined]
    told = client("GET", "/api/v1/worklist", "radiologist", params={"sort": "why"}).json()["studies"]  # type: ignore[attr-defined]
    assert [(row["study"], row["finding"]) for row in told] == [(plain[1]["study"], FINDING), (plain[0]["study"], None)]
    assert client("GET", "/api/v1/worklist", "engineer", params={"sort": "why"}).json()["studies"]  # type: ignore[attr-defined]


def test_events_of_a_critical_finding_do_not_name_it_to_who_reads_blind(client: Client) -> None:
    study = client.send(("zebra.dcm", dicom(14)))["studies"][0]["study"]
    with client.clinic.database.write() as connection:
        store.emit(connection, "critical.raised", SITE, study, {"finding": FINDING})
    found = events._since(client.clinic, SITE, 0)
    for role, covered in (("radiologist", {study}), ("engineer", set())):
        caller = access.Caller(role, access.Role(role), SITE, "api", "t")
        assert events._covered(client.clinic, caller, found) == covered


def test_a_rejected_image_tells_its_reader_nothing_either(client: Client) -> None:
    sent = client.send(("zebra.dcm", dicom(15)), ("zebra.dcm", dicom(15, SOPInstanceUID="1.2.16.4")))
    url = f"/api/v1/images/{sent['images'][1]['image']}/rejection"
    said = client("POST", url, "radiologist", json={"reason": "twice"})
    assert said.status_code == 201, said.text  # type: ignore[attr-defined]
    assert FINDING not in said.text  # type: ignore[attr-defined]
    assert FINDING not in client("DELETE", url, "radiologist").text  # type: ignore[attr-defined]


def test_a_second_reader_is_blind_as_well_until_somebody_signs(client: Client) -> None:
    study = client.send(("zebra.dcm", dicom(8)))["studies"][0]["study"]
    url = f"/api/v1/studies/{study}"
    client("POST", f"{url}/own-call", "radiologist", json={"normal": True})
    client("DELETE", f"{url}/claim", "radiologist")
    assert FINDING not in client("GET", url, "administrator").text  # type: ignore[attr-defined]
    assert client("GET", url, "administrator").json()["reviews"] == []  # type: ignore[attr-defined]
    client("POST", f"{url}/reviews", "radiologist", json={"state": "signed", "normal": True})
    assert FINDING in client("GET", url, "administrator").text  # type: ignore[attr-defined]


def test_what_is_not_read_blind_is_anchored_and_has_no_own_call(tmp_path: Path) -> None:
    app = opened(tmp_path)
    with TestClient(app, base_url=BASE) as http:
        client = Client(app, http)
        study = client.send(("zebra.dcm", dicom(9)))["studies"][0]["study"]
        url = f"/api/v1/studies/{study}"
        assert FINDING in client("GET", url, "radiologist").text  # type: ignore[attr-defined]
        assert client("POST", f"{url}/own-call", "radiologist", json={"normal": True}).status_code == 409  # type: ignore[attr-defined]
        review = client("POST", f"{url}/reviews", "radiologist", json={"state": "signed"}).json()  # type: ignore[attr-defined]
        assert (review["anchored"], review["own_call"]) == (True, None)


def test_the_share_is_kept_and_a_study_is_always_on_the_same_side() -> None:
    studies = [f"{number:032x}" for number in range(4000)]
    chosen = {
        share: {s for s in studies if blind.applies(Settings(blind_share=share), "a", s)} for share in (0, 0.25, 0.5, 1)
    }
    assert [len(chosen[share]) for share in (0, 1)] == [0, 4000]
    assert abs(len(chosen[0.25]) - 1000) < 150  # five standard deviations
    assert chosen[0.25] < chosen[0.5]
    assert blind.applies(Settings(blind_sites=["a"]), "a", studies[0])
    assert not blind.applies(Settings(blind_sites=["a"]), "b", studies[0])
