"""`wetread correct` on the database of a clinic, also while its service holds the folder."""

from __future__ import annotations

import getpass
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner
from ward import SITE, Ward, dicom

from wetread.cli import app
from wetread.clinic import retention, reviews, store, worklist


def run(folder: Path, *words: str) -> str:
    result = CliRunner().invoke(app, ["correct", *words, "--data", str(folder), "--reason", "why"])
    assert result.exit_code == 0, result.output
    return result.output.strip()


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # no wetread.toml


def test_patient_merge_reject_restore(ward: Ward, tmp_path: Path) -> None:
    received = ward.take(dicom(0), "pneumothorax.dcm")
    other = ward.take(dicom(1, PatientID="4711")).study
    ward.work()
    assert run(tmp_path, "patient", received.study, "--patient-id", "4711", "--sex", "") == received.study
    row = worklist.row(ward.database, SITE, received.study)
    assert (row.patient_id, row.sex, row.priority) == ("4711", None, "critical")
    assert run(tmp_path, "merge", other, received.study) == ""
    assert run(tmp_path, "reject", received.image) == received.study
    assert worklist.row(ward.database, SITE, received.study).priority == "routine"
    assert run(tmp_path, "restore", received.image) == received.study
    assert worklist.row(ward.database, SITE, received.study).priority == "critical"
    with ward.database.read() as connection:
        actors = set(connection.execute(sa.select(store.audit.c.actor)).scalars())
    assert f"command line ({getpass.getuser()})" in actors


def test_two_identifiers_of_one_patient(ward: Ward, tmp_path: Path) -> None:
    key = ward.take(dicom(0)).study
    assert run(tmp_path, "patients", "P0", "4711") == key
    assert worklist.row(ward.database, SITE, ward.take(dicom(3, PatientID="P0")).study).patient_id == "4711"


def test_a_study_that_is_not_there_is_a_line(ward: Ward, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["correct", "reject", "none", "--data", str(tmp_path), "--reason", "why"])
    assert result.exit_code != 0
    assert "no such image" in f"{result.output}{result.exception}"


def test_a_study_that_was_merged_away_is_not_read_and_goes_with_the_other(ward: Ward, tmp_path: Path) -> None:
    from wetread.errors import ConflictError

    kept, gone = (ward.take(dicom(n, PatientID="P")).study for n in range(2))
    ward.work()
    run(tmp_path, "merge", gone, kept)
    ward.work()
    with pytest.raises(ConflictError, match="was merged"):
        reviews.claim(ward.database, SITE, gone, "dr")
    reviews.save(ward.database, SITE, kept, "dr", sign=True)
    with ward.database.write() as connection:
        connection.execute(store.claim.delete())
        connection.execute(store.review.update().values(signed_at=store.now() - timedelta(days=9)))
    assert retention.remove(ward.database, ward.archive, [kept]) == 1
    with ward.database.read() as connection:
        assert connection.execute(sa.select(store.study.c.id)).all() == []
