"""FHIR resources against fhir.resources' models of R4B, the nearest to R4 that it has."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fhir.resources.R4B.bundle import Bundle
from ward import SITE, Ward, dicom, png

from wetread.clinic import codes, fhir, reviews, statement


def built(ward: Ward, study: str, **more: Any) -> dict[str, Any]:
    """Return the transaction of a study, which the models accept."""
    bundle = fhir.build(statement.load(ward.database, ward.archive, study), **more)
    Bundle.model_validate_json(json.dumps(bundle))
    return bundle


def by_type(bundle: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [entry["resource"] for entry in bundle["entry"] if entry["resource"]["resourceType"] == kind]


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["reference"]] if "reference" in value else []
        return own + [r for v in value.values() for r in references(v)]
    return [r for v in value for r in references(v)] if isinstance(value, list) else []


def test_each_finding_is_an_observation_of_a_device(ward: Ward) -> None:
    got = ward.take(dicom(1, AccessionNumber="A7", StudyDate="20240102", StudyTime="101112"), "pneumothorax.dcm")
    ward.work()
    bundle = built(ward, got.study)
    [device] = by_type(bundle, "Device")
    [model] = ward.models.values()
    assert device["identifier"][0]["value"] == model.id
    observations = {o["code"]["text"]: o for o in by_type(bundle, "Observation")}
    assert len(observations) == 5
    found = observations["Pneumothorax"]
    assert found["code"]["coding"] == [
        {"system": "http://snomed.info/sct", "code": "36118008", "display": "Pneumothorax"}
    ]
    assert found["valueCodeableConcept"]["coding"][0]["code"] == "LIKELY"
    assert found["component"][0]["valueQuantity"] == {
        "value": 0.9, "system": "http://unitsofmeasure.org", "code": "1", "unit": "1"
    }  # fmt: skip
    assert found["status"] == "preliminary"
    assert "performer" not in found
    urls = {entry["fullUrl"]: entry["resource"]["resourceType"] for entry in bundle["entry"]}
    assert urls[found["device"]["reference"]] == "Device"
    assert urls[found["derivedFrom"][0]["reference"]] == "ImagingStudy"
    assert set(references(bundle)) <= set(urls)
    assert found["subject"]["identifier"]["value"] == "P1"
    [study] = by_type(bundle, "ImagingStudy")
    assert study["identifier"][0] == {"system": "urn:dicom:uid", "value": "urn:oid:1.2.2.1"}
    assert study["identifier"][1]["value"] == "A7"
    assert "AI triage result" in found["note"][0]["text"]


def test_a_report_only_when_a_reader_signed(ward: Ward) -> None:
    got = ward.take(dicom(1), "edema.dcm")
    ward.work()
    assert by_type(built(ward, got.study), "DiagnosticReport") == []
    reviews.save(ward.database, SITE, got.study, "dr", answers={"Edema": "disagree"})
    assert by_type(built(ward, got.study), "DiagnosticReport") == []
    reviews.save(
        ward.database, SITE, got.study, "dr",
        answers={"Edema": "disagree"}, added=["Fracture"], note="Rib 4 & 5 <left>", verdict="wrong", sign=True,
    )  # fmt: skip
    bundle = built(ward, got.study)
    [report] = by_type(bundle, "DiagnosticReport")
    assert (report["status"], report["resultsInterpreter"]) == ("final", [{"display": "dr"}])
    assert "Rib 4 & 5 <left>" in report["conclusion"]
    resources = {entry["fullUrl"]: entry["resource"] for entry in bundle["entry"]}
    results = [resources[r["reference"]] for r in report["result"]]
    # The report consists of what the reader said, of nothing that the AI said.
    assert {r["code"]["text"]: r["valueCodeableConcept"]["coding"][0]["code"] for r in results} == {
        "Edema": codes.ANSWERS["disagree"].value, "Fracture": codes.ANSWERS["added"].value
    }  # fmt: skip
    assert all(r["status"] == "final" and r["performer"] == [{"display": "dr"}] for r in results)
    assert all("device" not in r for r in results)


def test_sending_it_again_creates_nothing_again(ward: Ward) -> None:
    """A server that honours conditional creates, in a few lines: the second transaction adds nothing."""
    got = ward.take(dicom(1), "edema.dcm")
    ward.work()
    reviews.save(ward.database, SITE, got.study, "dr", normal=False, sign=True)
    kept: dict[str, Any] = {}
    for _ in range(2):
        for entry in built(ward, got.study)["entry"]:
            request, identifier = entry["request"], entry["resource"]["identifier"][0]
            assert request["method"] == "POST"
            assert request["ifNoneExist"] == f"identifier={identifier['system']}|{identifier['value']}"
            kept.setdefault(f"{request['url']}?{request['ifNoneExist']}", entry["resource"])
    assert len(kept) == len(built(ward, got.study)["entry"])
    assert built(ward, got.study) == built(ward, got.study)


def test_the_site_says_whose_patient_numbers_they_are(ward: Ward) -> None:
    got = ward.take(dicom(1), "edema.dcm")
    ward.work()
    bundle = built(ward, got.study, patients="urn:oid:1.2.3.4")
    assert by_type(bundle, "Observation")[0]["subject"]["identifier"] == {"system": "urn:oid:1.2.3.4", "value": "P1"}


@pytest.mark.parametrize("content", [png(1), dicom(1, PatientID="", AccessionNumber="A|B^C"), dicom(1, StudyDate="")])
def test_odd_studies_are_valid_too(ward: Ward, content: bytes) -> None:
    got = ward.take(content, "edema")
    ward.work()
    [study] = by_type(built(ward, got.study), "ImagingStudy")
    assert study["numberOfInstances"] == 1


def test_a_new_result_is_new_observations(ward: Ward) -> None:
    got = ward.take(dicom(1), "edema.dcm")
    ward.work()
    first = {o["identifier"][0]["value"] for o in by_type(built(ward, got.study), "Observation")}
    ward.take(dicom(1, SOPInstanceUID="1.2.2.4"), "pneumothorax.dcm")
    ward.work()
    second = {o["identifier"][0]["value"] for o in by_type(built(ward, got.study), "Observation")}
    assert not first & second
