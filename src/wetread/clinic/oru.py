"""A study's AI triage result as an HL7 v2.5.1 message, ORU^R01, for a RIS that speaks nothing newer.

OBR-25 and OBX-11 are R: results stored, not yet verified. Only what a reader has signed is F, final.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

from wetread.clinic import codes
from wetread.clinic.codes import Code
from wetread.clinic.statement import NOTICE, Signed, Statement

_SCHEMES = {codes.SNOMED: "SCT", codes.PRIVATE: codes.PRIVATE}


def build(statement: Statement) -> str:
    """Build the message of a statement: what the models say, and what a reader signed, if one did.

    Returns
    -------
    str
        Segments ended by carriage return. The control id is derived, so that a retry repeats it.
    """
    reference = f"{statement.cause} {statement.signed.review if statement.signed else ''}"
    control = hashlib.sha256(reference.encode()).hexdigest()[:20]
    stamp = _stamp(statement.signed.at if statement.signed else statement.at)
    header = f"MSH|^~\\&|WETREAD|{_t(statement.site)}|||{stamp}||ORU^R01^ORU_R01|{control}|P|2.5.1||||||UNICODE UTF-8"
    name = "^".join(_t(part.strip()) for part in statement.patient_name.split(",", 1))
    born = (statement.birth_date or "").replace("-", "")
    patient = f"PID|1||{_t(statement.patient_id)}||{name}||{born}|{_t(statement.sex or 'U')}"
    segments = [header, patient, *_order(statement, control, stamp)]
    return "\r".join(segments) + "\r"


def _order(statement: Statement, control: str, stamp: str) -> list[str]:
    accession, taken = _t(statement.accession or ""), _digits(statement.acquired_at)
    state = "F" if statement.signed else "R"
    order = [""] * 26
    order[0:5] = ["OBR", "1", accession, control, _coded(codes.RESULT)]
    order[7], order[18], order[22], order[24], order[25] = taken, accession, stamp, "RAD", state
    segments = ["|".join(order), f"NTE|1||{_t(NOTICE)}", f"NTE|2||{_t(f'DICOM study {statement.study_uid}')}"]
    rows: list[str] = []

    def observe(kind: str, code: Code, value: str, *, group: int, units: str = "", flag: str = "", state: str) -> None:
        number = len(rows) + 1
        rows.append(f"OBX|{number}|{kind}|{_coded(code)}|{group}|{value}|{units}||{flag}|||{state}|||{stamp}")

    observe("TX", codes.PRIORITY, _t(f"{statement.priority}: {statement.reason}"), group=0, state="R")
    for group, said in enumerate(statement.said, 1):
        code, flag = codes.finding(said.finding), "A" if said.flagged else ""
        observe("CWE", code, _coded(codes.CALLS[said.call]), group=group, flag=flag, state="R")
        observe("NM", codes.PROBABILITY, f"{said.probability:.4f}", group=group, units="1^no units^UCUM", state="R")
        observe("NM", codes.THRESHOLD, f"{said.threshold:.4f}", group=group, units="1^no units^UCUM", state="R")
        observe("TX", codes.MODEL, _t(f"{said.model} {said.version} {said.model_id}"), group=group, state="R")
    if statement.signed:
        for group, (finding, answer) in enumerate(statement.signed.answers.items(), len(statement.said) + 1):
            observe("CWE", codes.finding(finding), _coded(codes.ANSWERS[answer]), group=group, state="F")
        observe("TX", codes.CONCLUSION, _t(conclusion(statement.signed)), group=0, state="F")
    return segments + rows


def conclusion(signed: Signed) -> str:
    """Return in words what a reader signed."""
    words = [f"Signed by {signed.reader}."]
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


def _digits(text: str | None) -> str:
    return "".join(c for c in text or "" if c.isdigit())


def _stamp(at: datetime) -> str:
    return at.strftime("%Y%m%d%H%M%S+0000")
