"""What is owed, tried, retried, given up: against real sockets."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import receivers
import sqlalchemy as sa
from ward import SITE, Ward, dicom, png

from wetread.clinic import delivery, reviews, store
from wetread.clinic.corrections import Corrections
from wetread.clinic.delivery import Delivery, Outbox
from wetread.config import Settings
from wetread.errors import ConfigError, ConflictError, NotFoundError

OK = (200, b"{}")
DOWN = (503, b"")


def outbox(ward: Ward, **settings: Any) -> Outbox:
    return Outbox(ward.database, ward.archive, Settings(outputs_retry_s=0.000001, **settings))


def rows(ward: Ward) -> list[Delivery]:
    return delivery.listing(ward.database, SITE, states=("queued", "failed", "sent", "given_up", "nothing"))


def drain(box: Outbox) -> int:
    """Send what is due, as the threads do; return how many tries that took."""
    return sum(1 for to in box.destinations for _ in iter(lambda to=to: box.step(to), False))


def complete(ward: Ward) -> None:
    """Let every study count as complete, as the sweep does after the quiet time."""
    with ward.database.write() as connection:
        for row in connection.execute(sa.select(store.study)).all():
            connection.execute(store.study.update().where(store.study.c.id == row.id).values(complete_at=None))
            store.emit(connection, "study.completed", row.site, row.id)


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
        ("outputs_webhook", "https://host/in", "secret-file"),
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
