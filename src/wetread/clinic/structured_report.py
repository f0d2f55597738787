"""A study's AI triage result as a DICOM Structured Report (TID 1500), which a PACS keeps beside the images.

One Comprehensive SR a study: a measurement group for each finding of each model, with its code, the algorithm
(name, version, package, operating point), probability, threshold, call, and the image that it was seen on. It is
UNVERIFIED and carries no preliminary flag: it is no report, neither preliminary nor final.
"""

from __future__ import annotations

import highdicom as hd
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes as dicom_codes
from pydicom.uid import ExplicitVRLittleEndian

from wetread import __version__
from wetread.clinic import codes, evidence, identity
from wetread.clinic.codes import Code
from wetread.clinic.statement import Said, Statement
from wetread.radiograph.dicom import quiet

SERIES = 9001  # far above what modalities count to
# What the image library (TID 1600) says about a radiograph; not every modality gives it.
_LIBRARY = {"Rows", "Columns", "PatientOrientation", "ImagerPixelSpacing"}


def build(statement: Statement) -> sr.ComprehensiveSR:
    """Build the SR of a statement; the same statement gives the same bytes.

    Raises
    ------
    NotDicomError
        When the study has no DICOM image to refer to.
    """
    title = codes.TITLE if statement.research_only else codes.RESULT
    references = evidence.references(statement)
    headers = {reference.picture.id: reference.header for reference in references}
    groups = [_group(statement, said, headers[said.image]) for said in statement.said if said.image in headers]
    if not groups:
        raise evidence.NotDicomError(
            f"study {statement.study}: its results are of images that are no DICOM; send the images as DICOM"
        )
    observer = sr.ObserverContext(
        observer_type=dicom_codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=identity.derive("device", statement.site),
            name="Wetread",
            manufacturer_name=evidence.MANUFACTURER,
            model_name="Wetread",
            serial_number=__version__,
        ),
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_concept(codes.PROCEDURE),
        imaging_measurements=groups,
        # Under the title Imaging Measurement Report, OHIF draws coordinates and nothing else, and we have none.
        title=_concept(title),
        referenced_images=[header for header in headers.values() if set(header.dir()) >= _LIBRARY] or None,
    )
    with quiet():
        made = sr.ComprehensiveSR(
            evidence=list(headers.values()),
            content=content,
            series_instance_uid=identity.derive("sr series", statement.study, statement.cause),
            series_number=SERIES,
            sop_instance_uid=identity.derive("sr", statement.study, statement.cause),
            instance_number=1,
            manufacturer=evidence.MANUFACTURER,
            manufacturer_model_name="Wetread",
            software_versions=__version__,
            device_serial_number=__version__,
            series_description=title.meaning,
            is_complete=True,
            is_verified=False,
            transfer_syntax_uid=ExplicitVRLittleEndian,
            specific_character_set="ISO_IR 192",
            previous_versions=[evidence.reference(*uids) for uids in statement.replaces] or None,
        )
    del made.PreliminaryFlag
    _separate(made)
    evidence.date_it(made, statement.told_at)
    return made


def _separate(item: Dataset) -> None:
    """Mark containers as lists of single statements, which viewers show line by line under their names."""
    if item.ValueType == "CONTAINER":
        item.ContinuityOfContent = "SEPARATE"
    for inner in item.get("ContentSequence", ()):
        _separate(inner)


def _concept(code: Code) -> hd.sr.CodedConcept:
    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _group(statement: Statement, said: Said, header: Dataset) -> sr.MeasurementsAndQualitativeEvaluations:
    """Return the measurement group (TID 1501) of one finding."""
    words = (statement.study, statement.cause, said.model_id, said.finding)
    evaluations = [
        (codes.KIND, codes.UNVERIFIED if statement.research_only else codes.UNVERIFIED_FREE),
        (codes.CALL, codes.CALLS[said.call]),
        (codes.POINT, codes.POINTS.get(said.point, Code(said.point.upper()[:16], codes.PRIVATE, said.point[:64]))),
        (codes.FLAG, codes.YES if said.flagged else codes.NO),
    ]
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=identity.derive("sr finding", *words), identifier=f"AI triage result: {said.finding} {said.call}"
        ),
        finding_type=_concept(codes.finding(said.finding)),
        algorithm_id=sr.AlgorithmIdentification(
            name=said.model,
            version=said.version or "unknown",
            parameters=[f"model package SHA-256 {said.model_id}", f"operating point {said.point}", statement.notice],
        ),
        measurements=[
            sr.Measurement(_concept(codes.PROBABILITY), round(said.probability, 6), dicom_codes.UCUM.NoUnits),
            sr.Measurement(_concept(codes.THRESHOLD), round(said.threshold, 6), dicom_codes.UCUM.NoUnits),
        ],
        qualitative_evaluations=[sr.QualitativeEvaluation(_concept(n), _concept(v)) for n, v in evaluations],
        source_images=[sr.SourceImageForMeasurementGroup(header.SOPClassUID, header.SOPInstanceUID)],
    )
