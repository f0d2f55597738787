"""A study's AI triage result as an HL7 v2.5.1 message, ORU^R01, for a RIS that speaks nothing newer.

OBR-25 and OBX-11 are R: results stored, not yet verified. Only what a reader has signed is F, final. When the patient
was corrected, the report is sent again with C, and what went to another patient is marked W, posted as wrong.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

from wetread.clinic import codes
from wetread.clinic.codes import Code
from wetread.clinic.statement import Signed, Statement

_SCHEMES = {codes.SNOMED: "SCT", codes.PRIVATE: codes.PRIVATE, codes.LOINC: "LN"}


def build(statement: Statement, *, corrects: bool = False) -> str:
    """Build the message of a statement: what the models say, and what a reader signed, if one did.

    Parameters
    ----------
    statement : Statement
    corrects : bool
        Whether the receiver got it under an identity that was corrected since.

    Returns
    -------
    str
        Segments ended by carriage return. The control id is derived, so that a retry repeats it.
    """
    review = statement.signed.review if statement.signed else ""
    control, filler = _digest(f"{statement.cause} {review}"), _digest(f"{statement.base} {review}")
    told_at = max(statement.told_at, statement.signed.at) if statement.signed else statement.told_at
    stamp = _stamp(told_at)
    header = f"MSH|^~\\&|WETREAD|{_t(statement.site)}|||{stamp}||ORU^R01^ORU_R01|{control}|P|2.5.1||||||UNICODE UTF-8"
    name = "^".join(_t(part.strip()) for part in statement.patient_name.split(",", 1))
    born = (statement.birth_date or "").replace("-", "")
    patient = f"PID|1||{_t(statement.patient_id)}||{name}||{born}|{_t(statement.sex or 'U')}"
    segments = [header, patient, *_order(statement, filler, stamp, corrects)]
    return "\r".join(segments) + "\r"


def withdraw(message: str, at: datetime) -> str:
    """Build the message that marks everything in one that was sent as wrong (OBX-11 W), in its own words.

    Parameters
    ----------
    message : str
        As it was sent.
    at : datetime
        When it turned out to be wrong.
    """
    segments = [segment.split("|") for segment in message.split("\r") if segment]
    stamp = _stamp(at)
    for fields in segments:
        if fields[0] == "MSH":
            fields[6], fields[9] = stamp, _digest(f"{fields[9]} wrong {stamp}")
        elif fields[0] == "OBR":
            fields[22], fields[25] = stamp, "C"
        elif fields[0] == "OBX":
            fields[11] = "W"
    return "".join("|".join(fields) + "\r" for fields in segments)


def _order(statement: Statement, filler: str, stamp: str, corrects: bool) -> list[str]:
    accession, taken = _t(statement.accession or ""), _digits(statement.acquired_at)
    final = "C" if corrects else "F"
    state = final if statement.signed or corrects else "R"
    order = [""] * 26
    order[0:5] = ["OBR", "1", accession, filler, _coded(codes.RESULT if statement.said else codes.STUDY)]
    order[7], order[18], order[22], order[24], order[25] = taken, accession, stamp, "RAD", state
    notes = [statement.notice] if statement.said else []
    notes.append(f"DICOM study {statement.study_uid}")
    segments = ["|".join(order), *(f"NTE|{number}||{_t(note)}" for number, note in enumerate(notes, 1))]
    rows: list[str] = []

    def observe(kind: str, code: Code, value: str, *, group: int, units: str = "", flag: str = "", state: str) -> None:
        number = len(rows) + 1
        rows.append(f"OBX|{number}|{kind}|{_coded(code)}|{group}|{value}|{units}||{flag}|||{state}|||{stamp}")

    if statement.said:
        observe("TX", codes.PRIORITY, _t(f"{statement.priority}: {statement.reason}"), group=0, state="R")
    for group, said in enumerate(statement.said, 1):
        code, flag = codes.finding(said.finding), "A" if said.flagged else ""
        observe("CWE", code, _coded(codes.CALLS[said.call]), group=group, flag=flag, state="R")
        observe("NM", codes.PROBABILITY, f"{said.probability:.4f}", group=group, units="1^no units^UCUM", state="R")
        observe("NM", codes.THRESHOLD, f"{said.threshold:.4f}", group=group, units="1^no units^UCUM", state="R")
        observe("TX", codes.MODEL, _t(f"{said.model} {said.version} {said.model_id}"), group=group, state="R")
    if statement.signed:
        for group, (finding, answer) in enumerate(statement.signed.answers.items(), len(statement.said) + 1):
            observe("CWE", codes.finding(finding), _coded(codes.ANSWERS[answer]), group=group, state=final)
        observe("TX", codes.CONCLUSION, _t(conclusion(statement.signed)), group=0, state=final)
    return segments + rows


def conclusion(signed: Signed) -> str:
    """Return in words what a reader signed."""
    words = [f"{'Addendum signed' if signed.parent else 'Signed'} by {signed.reader}."]
    if signed.normal:
        words.append("The reader calls the study normal.")
    words += [f"{finding}: {codes.ANSWERS[answer].meaning}." for finding, answer in signed.answers.items()]
    if signed.verdict:
        words.append(f"The reader judges the AI over all {signed.verdict}.")
    return " ".join([*words, signed.note.strip()]).strip()


def _coded(code: Code) -> str:
    return f"{_t(code.value)}^{_t(code.meaning)}^{_SCHEMES[code.scheme]}"


def _t(text: str) -> str:
    """Return text that cannot be taken for a separator or a new segment. Letters beyond ASCII stay: it is UTF-8."""
    marks = {"\\": "\\E\\", "|": "\\F\\", "^": "\\S\\", "&": "\\T\\", "~": "\\R\\", "\r": "\\.br\\", "\n": "\\.br\\"}
    return "".join(marks.get(c, c if c.isprintable() else " ") for c in text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _digits(text: str | None) -> str:
    return "".join(c for c in text or "" if c.isdigit())


def _stamp(at: datetime) -> str:
    return at.strftime("%Y%m%d%H%M%S+0000")
