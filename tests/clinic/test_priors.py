"""Other studies of a patient: by identifier, and by who gave it where both files say so."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from ward import SITE, Ward, dicom

from wetread.clinic import store
from wetread.clinic.corrections import Corrections
from wetread.clinic.priors import priors


def send(ward: Ward, seed: int, issuer: str | None, **more: Any) -> str:
    said = more | ({"IssuerOfPatientID": issuer} if issuer else {})
    study: str = ward.take(dicom(seed, PatientID="4711", **said), f"{seed}.dcm").study
    return study


def test_a_number_that_two_hospitals_gave_is_of_two_patients(ward: Ward) -> None:
    north, south, nobody = send(ward, 1, "NORTH"), send(ward, 2, "SOUTH"), send(ward, 3, None)
    beside = {key: {prior.study for prior in priors(ward.database, SITE, key)} for key in (north, south, nobody)}
    assert beside == {north: {nobody}, south: {nobody}, nobody: {north, south}}
    again = send(ward, 4, "NORTH")
    assert {prior.study for prior in priors(ward.database, SITE, again)} == {north, nobody}


def test_an_identifier_that_is_corrected_by_hand_was_given_by_nobody_known(ward: Ward) -> None:
    north, south = send(ward, 1, "NORTH"), send(ward, 2, "SOUTH", PatientName="A^B")
    models = list(ward.models)
    corrections = Corrections(ward.database, lambda connection, site: ward.ranking, lambda: models)
    corrections.patient(SITE, south, {"patient_id": "4712"}, "typed wrong", "Dr A")
    with ward.database.read() as connection:
        table = store.study.c
        assert connection.execute(sa.select(table.patient_issuer).where(table.id == south)).scalar_one() is None
    corrections.patient(SITE, south, {"patient_id": "4711"}, "no, right", "Dr A")
    assert {prior.study for prior in priors(ward.database, SITE, north)} == {south}


def test_a_later_header_says_who_gave_the_identifier(ward: Ward) -> None:
    study = send(ward, 1, None)
    assert send(ward, 1, "NORTH") == study
    with ward.database.read() as connection:
        assert connection.execute(sa.select(store.study.c.patient_issuer)).scalar_one() == "NORTH"
