"""What is owed, tried, retried, given up: against real sockets."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import hl7
import pytest
import receivers
import sqlalchemy as sa
from fhir.resources.R4B.bundle import Bundle
from owing import OK, complete, drain, outbox, rows
from ward import SITE, Ward, dicom, png

from wetread.clinic import delivery, reviews, store
from wetread.clinic.corrections import Corrections
from wetread.clinic.delivery import Outbox
from wetread.config import Settings
from wetread.errors import ConfigError, ConflictError, NotFoundError

DOWN = (503, b"")


def events(ward: Ward) -> list[str]:
    with ward.database.read() as connection:
        kinds = connection.execute(sa.select(store.event.c.kind).order_by(store.event.c.seq)).scalars()
        return [kind for kind in kinds if kind.startswith("delivery.")]


@contextmanager
def hook(ward: Ward, *answers: tuple[int, bytes], **settings: Any) -> Iterator[tuple[Outbox, receivers.Receiver]]:
    secret = ward.archive.root.parent / "secret"
    secret.write_text("swordfish\n")
    with receivers.http(*answers) as receiver:
        yield (
            outbox(
                ward,
                outputs_webhook=[f"http://127.0.0.1:{receiver.port}/in?x=1#secret-file={secret}"],
                **settings,
            ),
            receiver,
        )


def test_nothing_is_owed_by_default(ward: Ward) -> None:
    box = outbox(ward)
    ward.take(dicom(1), "pneumothorax.dcm")
    ward.work()
    complete(ward)
    assert rows(ward) == []
    assert box.destinations == ()


def test_a_critical_finding_is_told_signed_and_without_the_patient(ward: Ward) -> None:
    with hook(ward, DOWN, (500, b"no"), OK) as (box, receiver):
        ward.take(dicom(1, PatientName="Doe^Jane", AccessionNumber="A77"), "pneumothorax.dcm")
        ward.take(dicom(2), "edema.dcm")
        ward.work()
        owed = rows(ward)
        assert [(row.kind, row.state) for row in owed] == [("webhook", "queued")]
        assert drain(box) == 3
        [done] = rows(ward)
        assert (done.state, done.tries, done.error) == ("sent", 3, None)
        assert done.sent_at is not None
        assert events(ward) == ["delivery.failed", "delivery.sent"]
        request = receiver.got[-1]
        assert request.path == "/in?x=1"
        assert done.destination.startswith(f"http://127.0.0.1:{receiver.port}/#")
        assert "x=1" not in done.destination + repr(box.destinations)
        assert {r.headers["Wetread-Delivery"] for r in receiver.got} == {done.id}
        fields = dict(part.split("=") for part in request.headers["Wetread-Signature"].split(","))
        signed = hmac.new(b"swordfish", f"{fields['t']}.".encode() + request.body, hashlib.sha256).hexdigest()
        assert fields["v1"] == signed
        said = json.loads(request.body)
        assert (said["event"], said["finding"], said["study"]) == ("critical_finding", "Pneumothorax", done.study)
        for private in (b"Doe", b"Jane", b"P1", b"A77", b"1.2.2"):
            assert private not in request.body


def test_a_webhook_names_the_patient_when_asked_to(ward: Ward) -> None:
    with hook(ward, OK, outputs_webhook_patient=True) as (box, receiver):
        ward.take(dicom(1, PatientName="Doe^Jane"), "pneumothorax.dcm")
        ward.work()
        drain(box)
        assert json.loads(receiver.got[0].body)["patient"]["name"] == "Doe, Jane"


def test_what_fails_for_ever_is_given_up_shown_and_can_be_tried_again(ward: Ward) -> None:
    with hook(ward, DOWN, DOWN, DOWN, OK, outputs_tries=3) as (box, _):
        ward.take(dicom(1), "pneumothorax.dcm")
        ward.work()
        drain(box)
        [row] = rows(ward)
        assert (row.state, row.tries) == ("given_up", 3)
        assert row.error is not None
        assert "answered 503" in row.error
        assert events(ward) == ["delivery.failed", "delivery.failed"]
        assert delivery.undelivered(ward.database, SITE) == 1
        with pytest.raises(NotFoundError):
            delivery.retry(ward.database, "elsewhere", row.id, "mallory")
        delivery.retry(ward.database, SITE, row.id, "root")
        drain(box)
        assert rows(ward)[0].state == "sent"
        assert delivery.undelivered(ward.database, SITE) == 0
        with pytest.raises(ConflictError, match="done already"):
            delivery.retry(ward.database, SITE, row.id, "root")


def test_dismissing_ends_it(ward: Ward) -> None:
    with hook(ward, DOWN) as (box, _):
        ward.take(dicom(1), "pneumothorax.dcm")
        ward.work()
        box.step(box.destinations[0])
        delivery.dismiss(ward.database, SITE, rows(ward)[0].id, "root")
        assert drain(box) == 0
        assert rows(ward)[0].state == "nothing"


def test_waits_double_up_to_an_hour(ward: Ward) -> None:
    with receivers.http(DOWN) as receiver:
        box = Outbox(
            ward.database,
            ward.archive,
            Settings(outputs_fhir=[f"fhir+http://127.0.0.1:{receiver.port}/fhir"], outputs_retry_s=100),
        )
        ward.take(dicom(1), "edema.dcm")
        ward.work()
        complete(ward)
        waits = []
        for _ in range(8):
            with ward.database.write() as connection:
                connection.execute(store.delivery.update().values(due_at=store.now()))
            before = store.now()
            assert box.step(box.destinations[0])
            waits.append(round((rows(ward)[0].due_at - before).total_seconds(), -2))
        assert waits == [100, 200, 400, 800, 1600, 3200, 3600, 3600]
        assert not box.step(box.destinations[0])


def test_results_are_owed_once_they_are_complete_and_once(ward: Ward) -> None:
    with receivers.mllp("AA") as receiver:
        box = outbox(ward, outputs_hl7=[f"mllp://127.0.0.1:{receiver.port}"])
        ward.take(dicom(1), "edema.dcm")
        complete(ward)
        assert rows(ward) == []  # complete, but not analysed
        ward.work()
        complete(ward)
        complete(ward)
        assert drain(box) == 1
        complete(ward)
        assert drain(box) == 0
        ward.take(dicom(1, SOPInstanceUID="1.2.2.4"), "pneumothorax.dcm")  # a late image refines the result
        ward.work()
        complete(ward)
        assert drain(box) == 1
        first, second = receiver.got
        assert first.split("|")[9] != second.split("|")[9]


def test_results_that_were_overtaken_are_not_sent(ward: Ward) -> None:
    with receivers.mllp("AA") as receiver:
        box = outbox(ward, outputs_hl7=[f"mllp://127.0.0.1:{receiver.port}"])
        ward.take(dicom(1), "edema.dcm")
        ward.work()
        complete(ward)
        ward.take(dicom(1, SOPInstanceUID="1.2.2.4"), "pneumothorax.dcm")
        ward.work()
        complete(ward)
        drain(box)
        assert len(receiver.got) == 1
        assert "Pneumothorax" in receiver.got[0]
        assert sorted(row.state for row in rows(ward)) == ["nothing", "sent"]


def test_a_delivery_and_its_cause_are_one_transaction(ward: Ward) -> None:
    outbox(ward, outputs_hl7=["mllp://127.0.0.1:9"])
    got = ward.take(dicom(1), "edema.dcm")
    ward.work()
    with ward.database.write() as connection:
        connection.execute(store.study.update().values(complete_at=None))
    with suppress(ZeroDivisionError), ward.database.write() as connection:
        store.emit(connection, "study.completed", SITE, got.study)
        assert connection.execute(sa.select(sa.func.count()).select_from(store.delivery)).scalar_one() == 1
        raise ZeroDivisionError
    assert rows(ward) == []


@pytest.mark.parametrize("answer", ["AE", "AR", "close", "garbage"])
def test_an_hl7_receiver_must_say_yes(ward: Ward, answer: str, caplog: pytest.LogCaptureFixture) -> None:
    with receivers.mllp(answer, "AA") as receiver:
        box = outbox(ward, outputs_hl7=[f"mllp://127.0.0.1:{receiver.port}"])
        ward.take(dicom(1), "edema.dcm")
        ward.work()
        complete(ward)
        assert box.step(box.destinations[0])
        [row] = rows(ward)
        assert row.state == "failed"
        assert row.error is not None
        if answer in ("AE", "AR"):
            assert f"answered {answer} (Patient unknown)" in row.error
            with ward.database.read() as connection:  # it may quote a patient: for operators alone
                said = connection.execute(sa.select(store.event.c.kind, store.event.c.payload)).all()
            [failed] = [event.payload for event in said if event.kind == "delivery.failed"]
            assert (failed["kind"], failed["try"]) == ("hl7", 1)
            assert "Patient unknown" not in f"{failed} {caplog.text}"
        drain(box)
        assert rows(ward)[0].state == "sent"
        assert receiver.got[0] == receiver.got[1]  # a retry repeats the message, control id and all


def test_a_killed_sender_leaves_its_lease_to_the_next(ward: Ward) -> None:
    with receivers.mllp("AA") as receiver:
        settings = {"outputs_hl7": [f"mllp://127.0.0.1:{receiver.port}"]}
        box = outbox(ward, **settings)
        ward.take(dicom(1), "edema.dcm")
        ward.work()
        complete(ward)
        assert box._take(box.destinations[0]) is not None  # and then the process is killed
        other = outbox(ward, **settings)
        assert drain(other) == 0  # for it may still be at work
        with ward.database.write() as connection:
            connection.execute(store.delivery.update().values(lease_until=store.now()))
        assert drain(other) == 1
        assert rows(ward)[0].state == "sent"


def test_a_clock_that_was_ahead_holds_nothing(ward: Ward) -> None:
    with hook(ward, OK) as (box, _):
        ward.take(dicom(1), "pneumothorax.dcm")
        ward.work()
        with ward.database.write() as connection:
            far = store.now() + timedelta(days=300)
            connection.execute(store.delivery.update().values(due_at=far, lease_until=far))
        assert drain(box) == 1
        assert rows(ward)[0].state == "sent"


def test_what_a_merged_study_owes_goes_with_it(ward: Ward) -> None:
    with hook(ward, DOWN, OK) as (box, receiver):
        source = ward.take(dicom(1, PatientID="P0"), "pneumothorax.dcm").study
        target = ward.take(dicom(0), "nothing.dcm").study
        ward.work()
        assert box.step(box.destinations[0])
        hand = Corrections(ward.database, lambda connection, site: ward.ranking, lambda: list(ward.models))
        hand.merge(SITE, source, target, "one visit", "admin")
        assert delivery.undelivered(ward.database, SITE) == 1
        drain(box)
        assert [(row.study, row.state) for row in rows(ward)] == [(target, "sent")]
        assert json.loads(receiver.got[-1].body)["study"] == target


def test_a_destination_that_was_removed_gives_up_what_waits(ward: Ward) -> None:
    outbox(ward, outputs_hl7=["mllp://127.0.0.1:9"])
    ward.take(dicom(1), "edema.dcm")
    ward.work()
    complete(ward)
    without = outbox(ward)
    without.start()
    without.stop()
    [row] = rows(ward)
    assert (row.state, row.error) == ("given_up", "no longer a destination of the settings")


def test_a_picture_gets_no_dicom_output_and_says_why(ward: Ward) -> None:
    box = outbox(ward, outputs_sr=["dicom://PACS@127.0.0.1:9"])
    ward.take(png(1), "edema.png")
    ward.work()
    complete(ward)
    drain(box)
    [row] = rows(ward)
    assert row.state == "nothing"
    assert row.error is not None
    assert "no DICOM image" in row.error


def test_a_signature_owes_a_report(ward: Ward) -> None:
    answer = json.dumps({"entry": [{"response": {"status": "201 Created"}}]}).encode()
    with receivers.http((200, answer)) as receiver:
        box = outbox(ward, outputs_fhir=[f"fhir+http://127.0.0.1:{receiver.port}/fhir/"], outputs_tries=1)
        got = ward.take(dicom(1), "edema.dcm")
        ward.work()
        complete(ward)
        drain(box)
        first = json.loads(receiver.got[0].body)
        assert receiver.got[0].path == "/fhir"
        assert "DiagnosticReport" not in {entry["resource"]["resourceType"] for entry in first["entry"]}
        [row] = rows(ward)
        assert row.error is not None
        assert f"answered 1 of {len(first['entry'])} entries" in row.error
        reviews.save(ward.database, SITE, got.study, "dr", answers={"Edema": "agree"}, sign=True)
        drain(box)
        second = json.loads(receiver.got[-1].body)
        assert "DiagnosticReport" in {entry["resource"]["resourceType"] for entry in second["entry"]}


@pytest.mark.parametrize(
    ("setting", "address", "says"),
    [
        ("outputs_sr", "https://pacs/dicom-web", "must begin with dicomweb+https"),
        ("outputs_sr", "dicom://PACS@host", "AE@host:port"),
        ("outputs_fhir", "fhir+https://user:pw@host/fhir", "a password does not belong here"),
        ("outputs_fhir", "fhir+https://host/fhir#token=abc", "unknown option 'token'"),
        ("outputs_fhir", "fhir+https://host/fhir#token-file=/no/such", "no such file"),
        ("outputs_fhir", "fhir+https://host:x/fhir", "not an address"),
        ("outputs_hl7", "mllp://host", "has no port"),
        ("outputs_hl7", "mllp://:2575", "has no host"),
        ("outputs_fhir", "fhir+https://pw@host/fhir", "a password does not belong here"),
        ("outputs_fhir", "fhir+https://user:p/w@pw@host/fhir", "//…@host/…"),
        ("outputs_fhir", "fhir+https://host/fhir?token=pw", "a query does not belong here"),
        ("outputs_sr", "dicomweb+https://host/dicom-web?token=pw", "a query does not belong here"),
        ("outputs_webhook", "https://host/in", "secret-file"),
        ("outputs_webhook", "https://host:8443/pw?pw", "'https://host:8443/…': needs #secret-file"),
        ("outputs_webhook", "https://pw@host/pw", "a password does not belong here"),
        ("outputs_webhook", "https://host/in#secret", "token-file=/path"),
    ],
)
def test_an_address_that_cannot_be_is_named(ward: Ward, setting: str, address: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        outbox(ward, **{setting: [address]})
    assert says in str(caught.value)
    assert setting in str(caught.value)
    assert "pw" not in str(caught.value)


def test_secrets_stay_out_of_the_database(ward: Ward, tmp_path: Path) -> None:
    with hook(ward, DOWN) as (box, _):
        ward.take(dicom(1), "pneumothorax.dcm")
        ward.work()
        drain_once = box.step(box.destinations[0])
        assert drain_once
        [row] = rows(ward)
        assert "secret" not in row.destination
        content = b"".join(file.read_bytes() for file in tmp_path.glob("clinic.db*"))
        assert b"swordfish" not in content


class TestSites:
    @pytest.mark.parametrize("kind", ["hl7", "fhir", "sr", "webhook"])
    def test_a_site_s_destination_gets_that_site_s_studies_alone(self, ward: Ward, kind: str) -> None:
        secret = ward.archive.root.parent / "secret"
        secret.write_text("swordfish")
        form = {
            "hl7": "mllp://127.0.0.1:{}",
            "fhir": "fhir+http://127.0.0.1:{}/fhir",
            "sr": "dicomweb+http://127.0.0.1:{}/dicom-web",
            "webhook": f"http://127.0.0.1:{{}}/in#secret-file={secret}",
        }[kind]
        open_ = receivers.mllp if kind == "hl7" else lambda _: receivers.http(OK)
        with open_("AA") as north, open_("AA") as here, open_("AA") as everybody:
            lines = [
                f"{form.format(north.port)} =north",
                f"{form.format(here.port)}  = {SITE}",
                form.format(everybody.port),
            ]
            box = outbox(ward, **{f"outputs_{kind}": lines}, outputs_tries=1)
            ward.take(dicom(1), "pneumothorax.dcm")
            ward.intake.take(BytesIO(dicom(2)), "pneumothorax.dcm", "north")
            ward.intake.take(BytesIO(dicom(3)), "pneumothorax.dcm", "south")
            ward.work()
            complete(ward)
            with ward.database.read() as connection:
                owed = connection.execute(
                    sa.select(store.study.c.site, store.delivery.c.destination).join_from(store.delivery, store.study)
                ).all()
            ports = {
                str(receiver.port): name for name, receiver in (("north", north), (SITE, here), ("all", everybody))
            }
            found = {(site, next(name for port, name in ports.items() if f":{port}" in to)) for site, to in owed}
            assert found == {("north", "north"), (SITE, SITE), *((site, "all") for site in ("north", SITE, "south"))}
            drain(box)
            assert (len(north.got), len(here.got), len(everybody.got)) == (1, 1, 3)

    def test_one_address_may_serve_two_sites_with_secrets_of_their_own(self, ward: Ward, tmp_path: Path) -> None:
        for name in ("north", SITE):
            (tmp_path / name).write_text(f"token of {name}")
        with receivers.http(OK) as receiver:
            address = f"fhir+http://127.0.0.1:{receiver.port}/fhir#token-file={tmp_path}/"
            box = outbox(ward, outputs_fhir=[f"{address}north =north", f"{address}{SITE} ={SITE}"], outputs_tries=1)
            for seed, site in ((1, "north"), (2, SITE), (3, "south")):
                ward.intake.take(BytesIO(dicom(seed)), "edema.dcm", site)
            ward.work()
            complete(ward)
            drain(box)
            sent = {
                (request.headers["Authorization"], re.findall(r'"value": "(P\d)"', request.body.decode())[0])
                for request in receiver.got
            }
        assert sent == {("Bearer token of north", "P1"), (f"Bearer token of {SITE}", "P2")}

    def test_what_waits_for_another_site_s_destination_is_given_up(self, ward: Ward) -> None:
        outbox(ward, outputs_hl7=["mllp://127.0.0.1:9"])
        ward.take(dicom(1), "edema.dcm")
        ward.work()
        complete(ward)
        bound = outbox(ward, outputs_hl7=["mllp://127.0.0.1:9 =north"])
        assert drain(bound) == 0
        bound.start()
        bound.stop()
        assert [row.state for row in rows(ward)] == ["given_up"]

    @pytest.mark.parametrize(
        ("lines", "says"),
        [
            (["mllp://h:1 =north", "mllp://h:1 =north"], "twice"),
            (["mllp://h:1", "mllp://h:1 =north"], "twice"),
            (["mllp://h:1 ="], "names no site"),
            (["mllp://h:1=north"], "not an address"),
        ],
    )
    def test_lines_that_cannot_be(self, ward: Ward, lines: list[str], says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            outbox(ward, outputs_hl7=lines)


class TestReaderAlone:
    """A study that no model analysed: refused, or AI off. What its reader signs is told, and no AI beside it."""

    @pytest.mark.parametrize("why", ["refused", "off"])
    def test_a_report_without_ai(self, tmp_path: Path, why: str) -> None:
        ward = Ward(tmp_path, [] if why == "off" else None)
        try:
            with receivers.mllp("AA") as ris, receivers.http(OK) as fhir, receivers.http(OK) as pacs:
                box = outbox(
                    ward,
                    outputs_hl7=[f"mllp://127.0.0.1:{ris.port}"],
                    outputs_fhir=[f"fhir+http://127.0.0.1:{fhir.port}/fhir"],
                    outputs_sr=[f"dicomweb+http://127.0.0.1:{pacs.port}/dicom-web"],
                    outputs_tries=1,
                )
                study = ward.take(dicom(1), "lateral.dcm").study
                ward.work()
                complete(ward)
                assert drain(box) == 0
                reviews.save(ward.database, SITE, study, "dr", added=["Pneumothorax"], note="apical", sign=True)
                assert drain(box) == 2
                assert pacs.got == []
                bundle = json.loads(fhir.got[0].body)
                [message] = [hl7.parse(text) for text in ris.got]
        finally:
            ward.database.close()
        Bundle.model_validate_json(json.dumps(bundle))
        resources = [entry["resource"] for entry in bundle["entry"]]
        assert sorted(r["resourceType"] for r in resources) == ["DiagnosticReport", "ImagingStudy", "Observation"]
        [seen] = [r for r in resources if r["resourceType"] == "Observation"]
        assert (seen["status"], seen["code"]["text"]) == ("final", "Pneumothorax")
        assert "device" not in seen
        [report] = [r for r in resources if r["resourceType"] == "DiagnosticReport"]
        assert "apical" in report["conclusion"]
        assert [len(s["instance"]) for r in resources if "series" in r for s in r["series"]] == [1]
        assert "AI triage" not in str(message)
        assert (str(message.segment("OBR")[4][0][0][0]), str(message.segment("OBR")[25])) == ("18748-4", "F")
        assert [str(row[11]) for row in message.segments("OBX")] == ["F", "F"]
        assert (str(message.segments("OBX")[0][3][0][0][0]), str(message.segments("OBX")[0][5][0][0][0])) == (
            "36118008",
            "ADDED",
        )
