"""A study's AI triage result as FHIR R4: a transaction that may be sent any number of times and is done once.

One Observation for each finding of each model, made by a Device (the model); an ImagingStudy; and, once a reader has
signed and only then, a DiagnosticReport with the reader's answers as Observations of their own. Every resource is
created only when none has its identifier yet (conditional create), so that nothing of the server's is ever changed.
When the patient was corrected, the same resources are updated (conditional update), those alone that were created
here before, and what is told no more becomes ``entered-in-error``.
The patient is referred to by identifier: whoever has the patient's record keeps it.

`Observation.status` of an AI result is ``preliminary``, R4's only word for a value that nobody verified; the text and
the category say *AI triage result*, and no report comes of it without a reader.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from wetread import __version__
from wetread.clinic import codes, evidence, identity
from wetread.clinic.codes import Code
from wetread.clinic.oru import conclusion
from wetread.clinic.statement import Said, Signed, Statement

Resource = dict[str, Any]
_SPACE = uuid.UUID("6f0a3c1e-57e7-5ead-8f11-9a4b5f0c2d3f")
_URN = "urn:ietf:rfc:3986"
DEVICES = f"urn:oid:{identity.derive('fhir', 'devices')}"
_DICOM = "http://dicom.nema.org/resources/ontology/DCM"
_UCUM = "http://unitsofmeasure.org"
_REPORT = {"coding": [{"system": "http://loinc.org", "code": codes.STUDY.value, "display": codes.STUDY.meaning}]}


def build(
    statement: Statement,
    *,
    patients: str = "",
    final: bool = True,
    before: Iterable[Sequence[str]] = (),
    gone: Iterable[Sequence[str]] = (),
) -> Resource:
    """Build the transaction of a statement.

    Parameters
    ----------
    statement : Statement
    patients : str
        System (URI) of the site's patient identifiers; by default one that names Wetread's site.
    final : bool
        False while the reader can still take the signature back: what they say is ``preliminary`` until then.
    before : iterable of (type, system, value)
        Identifiers of what was created under an identity that was corrected since.
    gone : iterable of (type, system, value)
        Those of them that become entered-in-error, unless they are told again.

    Returns
    -------
    dict
        A Bundle, ready for JSON.
    """
    subject = {
        "type": "Patient",
        "identifier": {
            "system": patients or f"urn:oid:{identity.derive('fhir', 'patients', statement.site)}",
            "value": statement.patient_id or "unknown",
        },
    }
    devices = {said.model_id: _device(said, statement.notice) for said in statement.said}
    study = _imaging_study(statement, subject)
    observations = [_observation(statement, said, subject, study, devices[said.model_id]) for said in statement.said]
    resources = [*devices.values(), study, *observations]
    if statement.signed:
        resources += _report(statement, statement.signed, subject, study, observations, final)
    known = {tuple(each) for each in before}
    for resource in resources:
        if resource.get("status") == "final" and _key(resource) in known:
            resource["status"] = "corrected"
    entries = [_update(resource) if _key(resource) in known else _entry(resource) for resource in resources]
    told = {_key(resource) for resource in resources}
    entries += withdraw(key for key in gone if tuple(key) not in told)["entry"]
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}


def withdraw(before: Iterable[Sequence[str]]) -> Resource:
    """Build the transaction that marks resources as entered in error, of nobody and without content."""
    gone: list[Resource] = []
    for kind, system, value in sorted({(each[0], each[1], each[2]) for each in before}):
        resource: Resource = {
            "resourceType": kind,
            "identifier": [{"system": system, "value": value}],
            "status": "entered-in-error",
        }
        if kind == "ImagingStudy":
            resource["subject"] = {"display": "taken back: wrong patient"}
        else:
            resource["code"] = _coding(codes.RESULT) if kind == "Observation" else _REPORT
        gone.append(_update(resource))
    return {"resourceType": "Bundle", "type": "transaction", "entry": gone}


def made(bundle: Resource, statuses: Sequence[str] | None = None) -> list[list[str]]:
    """Return what is to be set right when the patient turns out to be another: (type, system, value) of each.

    Parameters
    ----------
    bundle : dict
        The transaction.
    statuses : sequence of str, optional
        What the server answered. Before it did, only what nobody else can have made counts; an ImagingStudy may be an
        archive's own, unless the server says that it was created now.
    """
    found = []
    for number, entry in enumerate(bundle["entry"]):
        kind, system, value = _key(entry["resource"])
        created = statuses is not None and statuses[number].startswith("201")
        if kind in ("Observation", "DiagnosticReport") or (kind == "ImagingStudy" and created):
            found.append([kind, system, value])
    return found


def _key(resource: Resource) -> tuple[str, str, str]:
    identifier = resource["identifier"][0]
    return resource["resourceType"], identifier["system"], identifier["value"]


def _entry(resource: Resource) -> Resource:
    kind, system, value = _key(resource)
    return {
        "fullUrl": f"urn:uuid:{_uuid(kind, value)}",
        "resource": resource,
        "request": {"method": "POST", "url": kind, "ifNoneExist": f"identifier={system}|{value}"},
    }


def _update(resource: Resource) -> Resource:
    kind, system, value = _key(resource)
    return {
        "fullUrl": f"urn:uuid:{_uuid(kind, value)}",
        "resource": resource,
        "request": {"method": "PUT", "url": f"{kind}?{urlencode({'identifier': f'{system}|{value}'})}"},
    }


def _reference(resource: Resource) -> Resource:
    value = resource["identifier"][0]["value"]
    return {"reference": f"urn:uuid:{_uuid(resource['resourceType'], value)}"}


def _uuid(*words: str) -> uuid.UUID:
    return uuid.uuid5(_SPACE, "\0".join(words))


def _urn(*words: str) -> list[Resource]:
    return [{"system": _URN, "value": f"urn:uuid:{_uuid(*words)}"}]


def _coding(code: Code, text: str | None = None) -> Resource:
    coded = {"system": code.system, "code": code.value, "display": code.meaning}
    return {"coding": [coded], "text": text or code.meaning}


def _device(said: Said, notice: str) -> Resource:
    return {
        "resourceType": "Device",
        "identifier": [{"system": DEVICES, "value": said.model_id}],
        "status": "active",
        "manufacturer": evidence.MANUFACTURER,
        "deviceName": [{"name": f"Wetread model {said.model}", "type": "model-name"}],
        "version": [
            {"type": {"text": "model"}, "value": said.version or "unknown"},
            {"type": {"text": "Wetread"}, "value": __version__},
        ],
        "note": [{"text": notice}],
    }


def _imaging_study(statement: Statement, subject: Resource) -> Resource:
    series: dict[str, list[Resource]] = {}
    # A picture without DICOM has UIDs that nobody else knows: only a DICOM study lists its images.
    for picture in statement.dicom:
        if picture.sop_class is None:
            continue
        instance = {"uid": picture.sop_uid, "sopClass": {"system": _URN, "code": f"urn:oid:{picture.sop_class}"}}
        series.setdefault(picture.series_uid, []).append(instance)
    modalities = {picture.series_uid: picture.modality or "OT" for picture in statement.dicom}
    found: Resource = {
        "resourceType": "ImagingStudy",
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{statement.study_uid}"}],
        "status": "available",
        "subject": subject,
        "numberOfInstances": len(statement.pictures),
    }
    if statement.accession:
        found["identifier"].append({"type": {"text": "Accession number"}, "value": statement.accession})
    if statement.acquired_at and len(statement.acquired_at) >= 10:
        found["started"] = statement.acquired_at[:10]
    if statement.description:
        found["description"] = statement.description
    if series:
        found["series"] = [
            {"uid": uid, "modality": {"system": _DICOM, "code": modalities[uid]}, "instance": instances}
            for uid, instances in series.items()
        ]
    return found


def _observation(statement: Statement, said: Said, subject: Resource, study: Resource, device: Resource) -> Resource:
    number = {"system": _UCUM, "code": "1", "unit": "1"}
    return {
        "resourceType": "Observation",
        "identifier": _urn("ai", statement.study, statement.base, said.model_id, said.finding),
        "status": "preliminary",
        "category": [
            {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category", "code": "imaging"}]},
            _coding(codes.RESULT),
        ],
        "code": _coding(codes.finding(said.finding), said.finding),
        "subject": subject,
        "issued": _instant(statement.at),
        "device": _reference(device),
        "derivedFrom": [_reference(study)],
        "valueCodeableConcept": _coding(codes.CALLS[said.call]),
        "interpretation": [_coding(codes.YES if said.flagged else codes.NO, _flag(said))],
        "note": [{"text": statement.notice}],
        "component": [
            {"code": _coding(codes.PROBABILITY), "valueQuantity": {"value": round(said.probability, 6), **number}},
            {"code": _coding(codes.THRESHOLD), "valueQuantity": {"value": round(said.threshold, 6), **number}},
            {"code": _coding(codes.POINT), "valueString": said.point},
        ],
    }


def _flag(said: Said) -> str:
    return f"{'At or above' if said.flagged else 'Below'} the operating point {said.point}"


def _report(
    statement: Statement,
    signed: Signed,
    subject: Resource,
    study: Resource,
    observations: list[Resource],
    final: bool,
) -> list[Resource]:
    """Return the reader's DiagnosticReport and the Observations that it consists of."""
    status = "final" if final else "preliminary"
    reader = {"display": signed.reader}
    of_ai = {said.finding: _reference(made) for said, made in zip(statement.said, observations, strict=True)}
    answers: list[Resource] = []
    for finding, answer in signed.answers.items():
        answers.append(
            {
                "resourceType": "Observation",
                "identifier": _urn("reader", signed.review, finding),
                "status": status,
                "code": _coding(codes.finding(finding), finding),
                "subject": subject,
                "issued": _instant(signed.at),
                "performer": [reader],
                "derivedFrom": [_reference(study), *([of_ai[finding]] if finding in of_ai else [])],
                "valueCodeableConcept": _coding(codes.ANSWERS[answer]),
            }
        )
    report = {
        "resourceType": "DiagnosticReport",
        "identifier": _urn("report", signed.review),
        "status": status,
        "category": [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "RAD"}]}],
        "code": _REPORT,
        "subject": subject,
        "issued": _instant(signed.at),
        "resultsInterpreter": [reader],
        "imagingStudy": [_reference(study)],
        "conclusion": conclusion(signed),
    }
    if answers:
        report["result"] = [_reference(answer) for answer in answers]
    return [*answers, report]


def _instant(at: datetime) -> str:
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")
