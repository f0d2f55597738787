"""What findings and calls are called on the wire: SNOMED CT where it has a code for just that, else our own scheme.

One table, for DICOM SR, FHIR and HL7 alike. A label that is wider or vaguer than any SNOMED CT concept (*Lung
Opacity*, *Pleural Other*) gets a code of ours rather than a wrong one of theirs, and so does one whose code no public
source confirms: each row of `CONFIRMED` says where code and term stand together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from wetread.clinic import identity

SNOMED = "SCT"
LOINC = "LN"
PRIVATE = "99WETREAD"
# The same schemes as FHIR and HL7 name them. An OID of our own needs no domain to be unique.
SYSTEMS = {
    SNOMED: "http://snomed.info/sct",
    LOINC: "http://loinc.org",
    PRIVATE: f"urn:oid:{identity.derive('coding scheme', PRIVATE)}",
}


@dataclass(frozen=True)
class Code:
    """A coded concept: value, scheme as DICOM designates it, and meaning."""

    value: str
    scheme: str
    meaning: str

    @property
    def system(self) -> str:
        """The scheme as FHIR names it."""
        return SYSTEMS[self.scheme]


# Where code and term stand together. PS3.16 is looked up in pydicom's dictionary by a test; the others were read once.
_CTCAE = "a public ConceptMap of CTCAE's terms (MedDRA) to SNOMED CT, equivalent"
_SYNTHEA = "Synthea's synthetic records"
CONFIRMED = {
    "18748-4": "DICOM PS3.16 CID 7000; HL7's consolidated CDA",
    "125605004": f"SNOMED International's examples of ECL; {_CTCAE}",
    "19242006": f"DICOM PS3.16 CID 3700; {_CTCAE}",
    "233604007": f"HL7's consolidated CDA, examples of problems; {_SYNTHEA}",
    "309529002": "HL7's Genomics Reporting, examples: Lung mass (finding)",
    "36118008": "DICOM PS3.16 CID 6105; OHDSI 253796",
    "399208008": f"{_SYNTHEA}: Plain chest X-ray (procedure)",
    "46621007": _CTCAE,
    "51615001": _CTCAE,
    "56717001": "OHDSI 434557",
    "60046008": "DICOM PS3.16 CID 645; OHDSI 254061",
    "786838002": "HL7 Lithuania's lung cancer guide: Nodule of lung",
    "8186001": "Stanford's labels for chest CT (arXiv 2411.09361), and a dozen mappings of CheXpert's labels alike",
    "840539006": "EU Digital COVID Certificate, value set disease-agent-targeted",
    "87433001": f"{_SYNTHEA}: Pulmonary emphysema (disorder)",
    "95436008": "OHDSI 4318404; Stanford's labels for chest CT (arXiv 2411.09361)",
}
_SNOMED = {
    "Atelectasis": ("46621007", "Atelectasis"),
    "Cardiomegaly": ("8186001", "Cardiomegaly"),
    "Consolidation": ("95436008", "Lung consolidation"),
    "COVID-19": ("840539006", "COVID-19"),
    "Edema": ("19242006", "Pulmonary edema"),
    "Effusion": ("60046008", "Pleural effusion"),
    "Emphysema": ("87433001", "Pulmonary emphysema"),
    "Fibrosis": ("51615001", "Fibrosis of lung"),
    "Fracture": ("125605004", "Fracture of bone"),
    "Mass": ("309529002", "Lung mass"),
    "Nodule": ("786838002", "Nodule of lung"),
    "Pleural Effusion": ("60046008", "Pleural effusion"),
    "Pneumonia": ("233604007", "Pneumonia"),
    "Pneumothorax": ("36118008", "Pneumothorax"),
    "Tuberculosis": ("56717001", "Tuberculosis"),
}
PROCEDURE = Code("399208008", SNOMED, "Plain chest X-ray")
STUDY = Code("18748-4", LOINC, "Diagnostic imaging study")


def _own(value: str, meaning: str) -> Code:
    return Code(value, PRIVATE, meaning)


RESULT = _own("AITRIAGE", "AI triage result")
TITLE = _own("TRIAGE", "AI triage result, research use only")  # of packages that allow more than that, RESULT
KIND = _own("KIND", "Kind of result")
UNVERIFIED = _own("UNVERIFIED", "AI triage result, unverified; research use only, not a report")
UNVERIFIED_FREE = _own("UNVERIFIED_FREE", "AI triage result, unverified; not a report")
CALL = _own("CALL", "Call")
CALLS = {
    "likely": _own("LIKELY", "Likely"),
    "unsure": _own("UNSURE", "Unsure"),
    "unlikely": _own("UNLIKELY", "Unlikely"),
}
PROBABILITY = _own("PROBABILITY", "Probability of the finding")
THRESHOLD = _own("THRESHOLD", "Probability that flags the finding")
POINT = _own("POINT", "Operating point")
POINTS = {
    "screen": _own("SCREEN", "Screen: sensitivity first"),
    "balanced": _own("BALANCED", "Balanced"),
}
FLAG = _own("FLAG", "At or above the operating point")
YES, NO = _own("YES", "Yes"), _own("NO", "No")
MODEL = _own("MODEL", "Model, version, SHA-256 of its package")
CONCLUSION = _own("CONCLUSION", "What the reader signed")
PRIORITY = _own("PRIORITY", "Place in the worklist")
ANSWER = _own("ANSWER", "Answer of the reader to the AI")
ANSWERS = {
    "agree": _own("AGREE", "The reader agrees with the AI"),
    "disagree": _own("DISAGREE", "The reader disagrees with the AI"),
    "unsure": _own("UNDECIDED", "The reader is unsure"),
    "added": _own("ADDED", "The reader sees it, no model named it"),
}


def finding(name: str) -> Code:
    """Return the code of a finding; one that the table does not have gets a code of ours made of its name."""
    if name in _SNOMED:
        return Code(_SNOMED[name][0], SNOMED, _SNOMED[name][1])
    # A code value has at most 16 characters (DICOM VR SH); one that is cut keeps apart by its digest.
    word = re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_")
    if len(word) > 16 or not word:
        word = (word[:10] + identity.derive("finding", name)[-6:])[:16]
    return _own(word, name[:64])
