"""HL7 v2 messages as the library `hl7` reads them."""

from __future__ import annotations

import hl7
from ward import SITE, Ward, dicom

from wetread.clinic import oru, reviews, statement


def message(ward: Ward, study: str) -> str:
    return oru.build(statement.load(ward.database, ward.archive, study))


def test_it_says_what_the_models_said_unverified(ward: Ward) -> None:
    elements = {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Müller^Zoë", "AccessionNumber": "A7"}
    got = ward.take(dicom(1, **elements), "edema.dcm")
    ward.work()
    text = message(ward, got.study)
    assert text == message(ward, got.study)
    read = hl7.parse(text)
    assert str(read.segment("MSH")[9]) == "ORU^R01^ORU_R01"
    header = read.segment("MSH")
    assert (str(header[11]), str(header[12]), str(header[18])) == ("P", "2.5.1", "UNICODE UTF-8")
    assert str(read.segment("PID")[3]) == "P1"
    assert str(read.segment("PID")[8]) == "F"
    assert all(str(row[14]) == str(header[7]) for row in read.segments("OBX"))
    assert str(read.segment("PID")[5]) == "Müller^Zoë"
    order = read.segment("OBR")
    assert (str(order[2]), str(order[18]), str(order[25])) == ("A7", "A7", "R")
    assert "AI triage result" in str(order[4])
    observed = read.segments("OBX")
    assert all(str(row[11]) == "R" for row in observed)
    assert [str(row[1]) for row in observed] == [str(number) for number in range(1, len(observed) + 1)]
    calls = {str(row[3][0][1][0]): str(row[5][0][0][0]) for row in observed if str(row[2]) == "CWE"}
    assert calls["Pulmonary edema"] == "LIKELY"
    assert calls["Pneumothorax"] == "UNLIKELY"
    numbers = [row for row in observed if str(row[2]) == "NM"]
    assert all(str(row[6]) == "1^no units^UCUM" for row in numbers)
    assert "preliminary" not in text.lower()
    assert "research use only" in text


def test_what_a_reader_signed_is_final(ward: Ward) -> None:
    got = ward.take(dicom(1), "edema.dcm")
    ward.work()
    before = hl7.parse(message(ward, got.study))
    reviews.save(ward.database, SITE, got.study, "dr", answers={"Edema": "agree"}, note="as said", sign=True)
    read = hl7.parse(message(ward, got.study))
    assert str(read.segment("OBR")[25]) == "F"
    assert str(read.segment("MSH")[10]) != str(before.segment("MSH")[10])
    final = [row for row in read.segments("OBX") if str(row[11]) == "F"]
    assert [str(row[5][0][0][0]) if str(row[2]) == "CWE" else str(row[5]) for row in final] == [
        "AGREE",
        "Signed by dr. Edema: The reader agrees with the AI. as said",
    ]
    assert len(read.segments("OBX")) == len(before.segments("OBX")) + 2


def test_no_name_breaks_out_of_its_field(ward: Ward) -> None:
    evil = "A|B^C~D&E\\F"
    got = ward.take(dicom(1, PatientID=evil, AccessionNumber="1|2\r3", PatientName="X|Y^Z&Q"), "edema.dcm")
    ward.work()
    reviews.save(ward.database, SITE, got.study, "dr", note="one\rPID|9||mallory\n|two^", sign=True)
    text = message(ward, got.study)
    read = hl7.parse(text)
    assert len(read.segments("PID")) == 1
    assert {str(segment[0]) for segment in read} == {"MSH", "PID", "OBR", "NTE", "OBX"}
    assert (
        read.unescape(str(read.segment("PID")[3])) == statement.load(ward.database, ward.archive, got.study).patient_id
    )
    assert read.unescape(str(read.segments("OBX")[-1][5])).endswith("one\rPID|9||mallory\r|two^")
