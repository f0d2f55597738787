"""Corrections over HTTP: who may make them, and what they answer."""

from __future__ import annotations

import itertools

import pytest
from ward import dicom

_seeds = itertools.count(5000)


@pytest.fixture
def taken(client) -> tuple[int, str, str]:
    """Give a study of one image: its seed, its id, its image's id."""
    seed = next(_seeds)
    receipt = client.send(("edema.dcm", dicom(seed, PatientName="Ro^Jane")))
    return seed, receipt["studies"][0]["study"], receipt["images"][0]["image"]


def test_a_patient_is_corrected(client, taken) -> None:
    _, study, _ = taken
    body = {"patient_name": "Roe, Jane", "sex": "F", "reason": "typing error"}
    answer = client("POST", f"/api/v1/studies/{study}/patient", json=body)
    assert answer.status_code == 200
    assert (answer.json()["study"], answer.json()["patient_name"]) == (study, "Roe, Jane")
    assert any("corrected after arrival" in caution for caution in answer.json()["cautions"])


def test_a_corrected_header_is_said_in_the_receipt(client, taken) -> None:
    seed, study, image = taken
    receipt = client.send(("edema.dcm", dicom(seed, PatientName="Roe^Jane")))
    assert receipt["images"] == [
        {"file": "edema.dcm", "image": image, "study": study, "new": True, "quarantined": False, "corrected": True}
    ]


@pytest.mark.parametrize("role", ["service", "radiologist", "engineer"])
def test_a_header_is_not_corrected_by_whoever_may_send(client, taken, role: str) -> None:
    seed, study, _ = taken
    file = ("edema.dcm", dicom(seed, PatientName="Doe^John"))
    answer = client("POST", "/api/v1/studies", role, files=[("files", file)])
    assert answer.status_code == 201
    [image] = answer.json()["images"]
    assert (image["study"], image["new"], image["quarantined"], image["corrected"]) == (study, True, True, False)
    found = client("GET", f"/api/v1/studies/{study}").json()
    assert found["patient_name"] == "Ro, Jane"
    assert any("a corrected header came whose sender may not correct" in caution for caution in found["cautions"])


def test_what_was_kept_apart_takes_effect_when_somebody_who_may_releases_it(client, taken) -> None:
    seed, study, image = taken
    file = ("edema.dcm", dicom(seed, PatientName="Doe^Jane"))
    [apart] = client("POST", "/api/v1/studies", "service", files=[("files", file)]).json()["images"]
    page = client("GET", "/operations").text
    assert f'action="/images/{apart["image"]}/release"' in page
    assert "Doe" not in page
    assert "/release" not in client("GET", "/operations", "engineer").text
    assert client("POST", f"/api/v1/images/{image}/release").status_code == 409  # nothing that waits
    answer = client("POST", f"/api/v1/images/{apart['image']}/release")
    assert answer.status_code == 200, answer.text
    assert (answer.json()["study"], answer.json()["patient_name"]) == (study, "Doe, Jane")
    assert client("POST", f"/api/v1/images/{apart['image']}/release").status_code == 404
    assert apart["image"] not in client("GET", "/operations").text


def test_studies_are_merged(client, taken) -> None:
    seed, study, _ = taken
    second = client.send(("x.dcm", dicom(next(_seeds), PatientID=f"P{seed}")))["studies"][0]["study"]
    answer = client("POST", f"/api/v1/studies/{second}/merge", json={"into": study, "reason": "one visit"})
    assert (answer.status_code, answer.json()["study"], answer.json()["image_count"]) == (200, study, 2)
    gone = client("GET", f"/api/v1/studies/{second}").json()
    assert (gone["merged_into"], gone["image_count"]) == (study, 0)
    again = client("POST", f"/api/v1/studies/{second}/merge", json={"into": study, "reason": "one visit"})
    assert again.status_code == 409
    listed = [row["study"] for row in client("GET", "/api/v1/worklist?limit=500").json()["studies"]]
    assert study in listed
    assert second not in listed


def test_a_reader_rejects_an_image_and_takes_it_back(client, taken) -> None:
    _, study, image = taken
    path = f"/api/v1/images/{image}/rejection"
    answer = client("POST", path, "radiologist", json={"reason": "blurred"})
    assert (answer.status_code, answer.json()["study"], answer.json()["code"]) == (201, study, "REJECTED")
    assert [(i["state"], i["reason"]) for i in answer.json()["images"]] == [("rejected", "blurred")]
    assert client("GET", f"/api/v1/images/{image}/frame").status_code == 404
    assert client("POST", path, "radiologist", json={"reason": "blurred"}).status_code == 409
    answer = client("DELETE", path, "radiologist")
    assert (answer.status_code, answer.json()["priority"]) == (200, "urgent")
    assert client("GET", f"/api/v1/images/{image}/frame").status_code == 200


@pytest.mark.parametrize("role", ["radiologist", "engineer", "service"])
def test_patients_and_merges_are_the_administrator_s(client, taken, role: str) -> None:
    _, study, _ = taken
    assert client("POST", f"/api/v1/studies/{study}/patient", role, json={"sex": "M", "reason": "x"}).status_code == 403
    body = {"into": study, "reason": "x"}
    assert client("POST", f"/api/v1/studies/{study}/merge", role, json=body).status_code == 403


@pytest.mark.parametrize("role", ["engineer", "service"])
def test_rejections_are_the_reader_s(client, taken, role: str) -> None:
    path = f"/api/v1/images/{taken[2]}/rejection"
    assert client("POST", path, role, json={"reason": "x"}).status_code == 403
    assert client("DELETE", path, role).status_code == 403


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/v1/studies/{study}/patient", {"reason": "x"}, 422),
        ("/api/v1/studies/{study}/patient", {"sex": "M"}, 422),
        ("/api/v1/studies/{study}/patient", {"birth_date": "yesterday", "reason": "x"}, 422),
        ("/api/v1/studies/{study}/patient", {"accession": "1", "reason": "x"}, 422),
        ("/api/v1/studies/none/patient", {"sex": "M", "reason": "x"}, 404),
        ("/api/v1/studies/{study}/merge", {"into": "none", "reason": "x"}, 404),
        ("/api/v1/studies/{study}/merge", {"into": "{study}", "reason": "x"}, 409),
        ("/api/v1/images/{image}/rejection", {"reason": " "}, 422),
        ("/api/v1/images/{image}/rejection", {"reason": "x", "code": "1"}, 422),
        ("/api/v1/images/none/rejection", {"reason": "x"}, 404),
    ],
)
def test_what_cannot_be_done_is_said(client, taken, path: str, body: dict, status: int) -> None:
    _, study, image = taken
    body = {key: value.format(study=study, image=image) for key, value in body.items()}
    answer = client("POST", path.format(study=study, image=image), json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]
