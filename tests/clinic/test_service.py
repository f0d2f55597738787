"""The clinic as a whole: what starts, what is said when something is missing, and who may use a folder."""

from __future__ import annotations

import logging
import threading
from io import BytesIO
from pathlib import Path

import pytest
from hl7.client import MLLPClient
from peers import free_port
from peers import wait as until
from ward import SITE, NameReader, dicom, png

from wetread.clinic import store, triage, worklist
from wetread.clinic.ai import FAILING
from wetread.clinic.service import Clinic
from wetread.config import Settings
from wetread.errors import ClinicError, Code, ConfigError


def settings(**values: object) -> Settings:
    return Settings.model_validate(values)


def take(clinic: Clinic, seed: int, name: str) -> str:
    from io import BytesIO

    return clinic.intake.take(BytesIO(png(seed)), name, SITE).study


def wait(clinic: Clinic, study: str) -> worklist.Row:
    pause = threading.Event()
    for _ in range(1000):
        row = worklist.row(clinic.database, SITE, study)
        if row.analysis != "received":
            return row
        pause.wait(0.02)
    raise AssertionError("it was never analysed")


def test_every_code_can_be_the_reason() -> None:
    assert set(triage._TELLING) == set(Code)


def test_it_analyses_and_stops_in_order(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, settings(), models=[NameReader()])
    clinic.start()
    assert wait(clinic, take(clinic, 1, "edema.png")).priority == "urgent"
    assert clinic.ai(SITE).banner is None
    clinic.stop()
    again = Clinic(tmp_path, settings(), models=[NameReader()])  # the lock went with the first
    again.start()
    assert worklist.page(again.database, SITE).counts.urgent == 1
    again.stop()


def test_one_service_a_folder(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, settings(), models=[])
    with pytest.raises(ClinicError, match="another `wetread serve`"):
        Clinic(tmp_path, settings(), models=[])
    clinic.start()
    clinic.stop()


def test_a_model_that_is_missing_is_said_and_studies_come_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clinic = Clinic(tmp_path, settings(models=["no-such-model"]))
    clinic.start()
    state = clinic.ai(SITE)
    assert (state.on, state.models[0].state) == (False, "missing")
    assert state.banner is not None
    assert "not available" in state.banner
    assert "no-such-model" in caplog.text
    study = take(clinic, 1, "edema.png")
    assert worklist.row(clinic.database, SITE, study).status == "received"
    clinic.stop()


def test_a_study_that_waited_for_a_model_is_analysed_when_there_is_one(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, settings(), models=[])
    clinic.start()
    study = take(clinic, 1, "edema.png")
    clinic.stop()
    clinic = Clinic(tmp_path, settings(), models=[NameReader()])
    clinic.start()
    row = wait(clinic, study)
    assert (row.priority, row.reason) == ("urgent", "Edema likely (names 1)")
    clinic.stop()


def test_a_model_that_keeps_failing_is_said(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, settings(), models=[NameReader()])
    clinic.start()
    row = wait(clinic, take(clinic, 1, "poison.png"))
    assert (row.status, row.code) == ("not_analysed", "MODEL_FAILED")
    assert clinic.worker is not None
    assert max(clinic.worker.failures.values()) >= FAILING
    state = clinic.ai(SITE)
    assert state.models[0].state == "failing"
    assert state.banner is not None
    assert "names" in state.banner
    wait(clinic, take(clinic, 2, "edema.png"))
    assert clinic.ai(SITE).banner is None
    clinic.stop()


def test_ai_off_by_setting_opens_no_model(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, settings(ai=False), models=[NameReader()])
    clinic.start()
    assert clinic.models == {}
    assert clinic.ai(SITE).banner == "AI is switched off: studies are listed first come, first served."
    clinic.stop()


def test_a_new_rule_orders_the_list_at_the_next_start(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, settings(), models=[NameReader()])
    clinic.start()
    study = take(clinic, 1, "cardiomegaly.png")
    assert wait(clinic, study).priority == "routine"
    clinic.stop()
    rule = tmp_path / "rule.toml"
    rule.write_text('[critical]\nfindings = ["Cardiomegaly"]\ncap_minutes = 9\n')
    clinic = Clinic(tmp_path, settings(priority=str(rule)), models=[NameReader()])
    clinic.start()
    pause = threading.Event()
    for _ in range(500):
        if worklist.row(clinic.database, SITE, study).priority == "critical":
            break
        pause.wait(0.02)
    assert worklist.row(clinic.database, SITE, study).priority == "critical"
    clinic.stop()


def test_overdue_studies_are_promoted_while_it_runs(tmp_path: Path) -> None:
    rule = tmp_path / "rule.toml"
    rule.write_text("[routine]\ncap_minutes = 0.005\n")
    clinic = Clinic(tmp_path, settings(priority=str(rule)), models=[NameReader()])
    clinic.start()
    study = take(clinic, 1, "nothing.png")
    pause = threading.Event()
    for _ in range(500):
        if worklist.row(clinic.database, SITE, study).overdue:
            break
        pause.wait(0.02)
    row = worklist.row(clinic.database, SITE, study)
    assert row.overdue
    assert row.reason.startswith("promoted: waiting cap 0.005 min")
    clinic.stop()


def test_half_copied_uploads_are_gone_and_forgotten_files_adopted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from io import BytesIO

    clinic = Clinic(tmp_path, settings(), models=[NameReader()])
    clinic.archive.put(BytesIO(png(5)), limit=10**6)
    (tmp_path / "archive" / "incoming" / "half").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        clinic.start()
    assert "1 files without a row were taken in" in caplog.text
    assert list((tmp_path / "archive" / "incoming").iterdir()) == []
    rows = worklist.page(clinic.database, SITE).rows
    assert len(rows) == 1
    wait(clinic, rows[0].study)
    clinic.stop()


def test_it_completes_studies_and_takes_adt_messages_while_it_runs(tmp_path: Path) -> None:
    port = free_port()
    given = settings(complete_after_s=0, hl7_port=port, hl7_host="127.0.0.1", hl7_peers=["127.0.0.1"])
    clinic = Clinic(tmp_path, given, models=[NameReader()])
    clinic.start()
    try:
        study = clinic.intake.take(BytesIO(dicom(0)), "edema.dcm", SITE).study

        def said() -> list[str]:
            return [event["kind"] for event in worklist.study(clinic.database, SITE, study).events]

        until(lambda: "study.completed" in said(), "the study is complete")
        with MLLPClient("127.0.0.1", port, encoding="utf-8") as sender:
            message = "MSH|^~\\&|HIS||||||ADT^A08|7|P|2.5\rPID|1||P0||Roe^Jane\r"
            assert b"MSA|AA|7" in sender.send_message(message)
        assert worklist.row(clinic.database, SITE, study).patient_name == "Roe, Jane"
        assert said().count("study.completed") == 1
    finally:
        clinic.stop()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="name a folder you may write"):
        Clinic(tmp_path / "file", settings())


def test_a_job_for_a_retired_model_does_not_hold_its_study_up(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, settings(), models=[NameReader("old")])
    clinic.switches.take({"old": NameReader("old")})  # never started: what it queues stays
    study = take(clinic, 1, "edema.png")
    clinic.database.close()
    clinic._lock.close()
    clinic = Clinic(tmp_path, settings(), models=[NameReader("new")])
    clinic.start()
    assert wait(clinic, study).model == "new 1"
    with clinic.database.read() as connection:
        import sqlalchemy as sa

        assert set(connection.execute(sa.select(store.job.c.state)).scalars()) == {"done"}
    clinic.stop()
