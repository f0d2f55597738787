"""The SR as others read it: highdicom, pydicom, DCMTK."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import hl7
import peers
import pydicom
import pytest
from fhir.resources.R4B.bundle import Bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ward import Ward, dicom, png

from wetread.clinic import codes, evidence, fhir, identity, oru, statement, structured_report
from wetread.clinic.statement import Statement
from wetread.findings import TASKS
from wetread.radiograph.dicom import quiet


def said(ward: Ward, content: bytes, name: str = "pneumothorax.dcm") -> Statement:
    got = ward.take(content, name)
    ward.work()
    return statement.load(ward.database, ward.archive, got.study)


def written(made: pydicom.Dataset) -> bytes:
    buffer = BytesIO()
    made.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def test_it_says_what_the_models_said(ward: Ward) -> None:
    about = said(ward, dicom(1, PatientName="Müller^Zoë", SpecificCharacterSet="ISO_IR 192", StudyDate="20240102"))
    again = hd.sr.srread(BytesIO(written(structured_report.build(about))))
    assert isinstance(again, hd.sr.ComprehensiveSR)
    assert (again.CompletionFlag, again.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert "PreliminaryFlag" not in again
    assert (again.Manufacturer, again.Modality, again.StudyInstanceUID) == ("Wetread", "SR", "1.2.2.1")
    assert (str(again.PatientName), again.PatientID, again.StudyDate) == ("Müller^Zoë", "P1", "20240102")
    assert again.SeriesInstanceUID != "1.2.2.2"
    assert again.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert again.ConceptNameCodeSequence[0].CodeMeaning == "AI triage result, research use only"
    assert {e.value for e in again.iterall() if e.keyword == "ContinuityOfContent"} == {"SEPARATE"}
    groups = {g.finding_type.value: g for g in again.content.get_image_measurement_groups()}
    assert len(groups) == 5
    found = groups["36118008"]
    assert found.finding_type.scheme_designator == "SCT"
    numbers = {m.name.value: (m.value, m.unit.value, m.unit.scheme_designator) for m in found.get_measurements()}
    assert numbers == {"PROBABILITY": (0.9, "1", "UCUM"), "THRESHOLD": (0.5, "1", "UCUM")}
    words = {e.name.value: e.value.value for e in found.get_qualitative_evaluations()}
    assert words == {"CALL": "LIKELY", "FLAG": "YES", "KIND": "UNVERIFIED", "POINT": "SCREEN"}
    assert groups["19242006"].get_qualitative_evaluations()[1].value.value == "UNLIKELY"
    assert [image.referenced_sop_instance_uid for image in found.source_images] == ["1.2.2.3"]
    [model] = ward.models.values()
    texts = [str(element.value) for element in again.iterall() if element.keyword == "TextValue"]
    assert "names" in texts
    assert f"model package SHA-256 {model.id}" in texts
    assert "operating point screen" in texts
    assert any("AI triage result, research use only" in text for text in texts)
    free = hd.sr.srread(BytesIO(written(structured_report.build(replace(about, research_only=False)))))
    assert free.ConceptNameCodeSequence[0].CodeMeaning == free.SeriesDescription == "AI triage result"
    assert "research" not in str(free).lower()
    everything = str(again).lower()
    assert "preliminary" not in everything
    [study] = again.CurrentRequestedProcedureEvidenceSequence
    assert study.StudyInstanceUID == "1.2.2.1"
    assert study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.2.3"


def test_a_retry_repeats_it_byte_for_byte(ward: Ward) -> None:
    about = said(ward, dicom(1))
    assert written(structured_report.build(about)) == written(structured_report.build(about))


def test_new_results_are_another_document(ward: Ward) -> None:
    first = structured_report.build(said(ward, dicom(1)))
    second = structured_report.build(said(ward, dicom(1, SOPInstanceUID="1.2.2.4"), "edema.dcm"))
    assert first.StudyInstanceUID == second.StudyInstanceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID != second.SeriesInstanceUID
    [study] = second.CurrentRequestedProcedureEvidenceSequence
    assert len(study.ReferencedSeriesSequence[0].ReferencedSOPSequence) == 2


@pytest.mark.parametrize(
    "elements",
    [
        {"StudyDate": "yesterday", "StudyTime": "9999", "StudyID": "x" * 80, "AccessionNumber": "y" * 90},
        {"PatientName": "A\\B^C\\D=" + "z" * 300, "PatientID": "p" * 300, "ReferringPhysicianName": "q" * 300},
        {"PatientBirthDate": "20240230", "PatientSex": "X", "Modality": "a" * 40},
        {"PatientOrientation": ["L", "F"], "ImagerPixelSpacing": ["0.1", "0.1"]},
        {"PatientOrientation": ["<", ">"], "ImagerPixelSpacing": ["-1", "0"]},
        {"PatientName": "", "PatientID": None, "StudyDate": "", "Modality": None},
    ],
)
def test_a_hostile_header_makes_a_clean_document(ward: Ward, elements: dict[str, Any], tmp_path: Path) -> None:
    with quiet():
        content = dicom(1, **elements)
    made = written(structured_report.build(said(ward, content)))
    again = pydicom.dcmread(BytesIO(made))  # warnings are errors here
    assert len(str(again.PatientID)) <= 64
    str(again)


def test_without_dicom_there_is_none(ward: Ward) -> None:
    with pytest.raises(evidence.NotDicomError, match="no DICOM image"):
        structured_report.build(said(ward, png(1), "edema.png"))


@pytest.mark.parametrize("elements", [{"StudyInstanceUID": None}, {"StudyInstanceUID": "../../etc"}])
def test_nor_where_the_uids_are_ours_alone(ward: Ward, elements: dict[str, Any]) -> None:
    with quiet():
        content = dicom(1, **elements)
    with pytest.raises(evidence.NotDicomError, match="UIDs of its own"):
        structured_report.build(said(ward, content))


def test_every_finding_has_a_code_that_dicom_can_hold() -> None:
    names = {finding for task in TASKS.values() for finding in task.findings} | {"Pleural Thickening (left)", "肺炎"}
    made = {name: codes.finding(name) for name in names}
    for code in made.values():
        assert 0 < len(code.value) <= 16
        assert 0 < len(code.meaning) <= 64
        assert code.value.isascii()
    own = [code.value for code in made.values() if code.scheme == codes.PRIVATE]
    assert len(own) == len(set(own))
    words = [code for code in vars(codes).values() if isinstance(code, codes.Code)]
    assert all(len(code.value) <= 16 and len(code.meaning) <= 64 for code in words)


@pytest.mark.system
def test_dcmtk_reads_it(ward: Ward, tmp_path: Path) -> None:
    file = tmp_path / "sr.dcm"
    file.write_bytes(written(structured_report.build(said(ward, dicom(1)))))
    read = peers.dcmtk("dsrdump", "+Pf", file)
    assert read.returncode == 0, read.stderr
    assert not [line for line in read.stderr.splitlines() if line.startswith(("E:", "F:"))]
    assert "Comprehensive SR Document" in read.stdout
    assert "Verification Flag   : UNVERIFIED" in read.stdout
    assert 'CODE:(,,"Finding")=(36118008,SCT,"Pneumothorax")' in read.stdout
    assert 'CODE:(,,"Call")=(LIKELY,99WETREAD,"Likely")' in read.stdout
    dump = peers.dcmtk("dcmdump", file)
    assert dump.returncode == 0
    assert not [line for line in dump.stderr.splitlines() if line.startswith(("E:", "F:"))]


@given(
    name=st.text(max_size=200),
    patient=st.text(max_size=200),
    accession=st.text(max_size=80),
    born=st.text(max_size=12),
    finding=st.text(min_size=1, max_size=64),
    probability=st.floats(0, 1),
)
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_no_text_breaks_it(
    ward: Ward, name: str, patient: str, accession: str, born: str, finding: str, probability: float
) -> None:
    """Whatever a patient or a finding is called: the SR is written and read, FHIR and HL7 are valid."""
    about = said(ward, dicom(1))
    clean = {n: identity.clean(v) for n, v in {"name": name, "patient": patient, "accession": accession}.items()}
    odd = replace(about.said[0], finding=finding, probability=probability, version=patient[:64], model=name[:64] or "m")
    about = replace(
        about,
        patient_name=clean["name"],
        patient_id=clean["patient"],
        accession=clean["accession"] or None,
        birth_date="2024-02-29" if len(born) > 6 else None,
        said=(odd, *about.said[1:]),
    )
    again = pydicom.dcmread(BytesIO(written(structured_report.build(about))))
    assert len(again.ContentSequence) > 5
    Bundle.model_validate_json(json.dumps(fhir.build(about)))
    read = hl7.parse(oru.build(about))
    assert {str(segment[0]) for segment in read} == {"MSH", "PID", "OBR", "NTE", "OBX"}
    assert read.unescape(str(read.segment("PID")[3])) == clean["patient"]
