"""A critical finding stays open until somebody was told: acknowledged, signed, communicated, escalated meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from ward import SITE, Ward, dicom, png

from wetread.clinic import critical, delivery, reviews, store, triage
from wetread.clinic.corrections import Corrections
from wetread.clinic.critical import Criticals
from wetread.clinic.priority import Rules
from wetread.clinic.reviews import save
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.errors import ClinicError, ConflictError, NotFoundError

MINUTE = timedelta(minutes=1)
SETTINGS = Settings.model_validate(
    {"critical_ack_minutes": 15, "critical_tell_minutes": 60, "critical_steps": [0, 10, 30]}
)


@dataclass
class Room:
    """A ward whose signatures are followed."""

    ward: Ward
    criticals: Criticals

    def send(self, name: str = "pneumothorax.png", seed: int = 1, **more: Any) -> str:
        study = self.ward.take(png(seed), name, **more).study
        self.ward.work()
        return study

    def sign(self, study: str, **more: Any) -> str:
        return save(self.ward.database, SITE, study, "Dr N", sign=True, **more)

    def alert(self, study: str) -> critical.Alert | None:
        return self.criticals.of(SITE, study)[0]

    def done(self, study: str) -> list[str]:
        return [each.kind for each in self.criticals.of(SITE, study)[1]]

    def outcomes(self, study: str) -> list[str | None]:
        table = store.alert.c
        with self.ward.database.read() as connection:
            rows = connection.execute(sa.select(table.outcome).where(table.study == study).order_by(table.opened_at))
            return list(rows.scalars())

    def tell(self, study: str, **more: Any) -> None:
        said = {"recipient": "Sister M, ward 3", "how": "phone", "read_back": True} | more
        self.criticals.tell(SITE, study, "Dr N", **said)


@pytest.fixture
def room(ward: Ward) -> Room:
    return Room(ward, Criticals(ward.database, SETTINGS, Rules()))


def test_what_ai_calls_critical_is_acknowledged_signed_and_told(room: Room) -> None:
    study = room.send()
    alert = room.alert(study)
    assert alert is not None
    assert (alert.source, alert.finding, alert.stage) == ("ai", "Pneumothorax", "acknowledge")
    assert alert.due_at == alert.opened_at + 15 * MINUTE
    assert [each.study for each in room.criticals.listing(SITE)] == [study]
    assert room.criticals.listing("north") == []

    room.criticals.acknowledge(SITE, study, "Dr N")
    room.criticals.acknowledge(SITE, study, "Dr M")  # once
    alert = room.alert(study)
    assert alert is not None
    assert alert.acknowledged_at is not None
    assert (alert.stage, alert.due_at) == ("sign", alert.acknowledged_at + 60 * MINUTE)

    room.sign(study, answers={"Pneumothorax": "agree"})
    alert = room.alert(study)
    assert alert is not None
    assert alert.stage == "tell"
    assert alert.confirmed_at is not None
    assert alert.due_at == alert.confirmed_at + 60 * MINUTE

    room.tell(study, note="drain in place")
    assert room.alert(study) is None
    assert room.criticals.listing(SITE) == []
    assert room.done(study) == ["acknowledged", "communicated"]
    told = room.criticals.of(SITE, study)[1][1]
    assert (told.recipient, told.how, told.read_back, told.note) == (
        "Sister M, ward 3",
        "phone",
        True,
        "drain in place",
    )
    assert room.outcomes(study) == ["communicated"]


def test_it_is_in_the_audit_and_the_events_and_events_name_nobody(room: Room) -> None:
    study = room.send()
    room.criticals.acknowledge(SITE, study, "Dr N")
    room.tell(study)
    with room.ward.database.read() as connection:
        audits = connection.execute(
            sa.select(store.audit).where(store.audit.c.action.startswith("critical.")).order_by(store.audit.c.seq)
        ).all()
        events = connection.execute(
            sa.select(store.event).where(store.event.c.kind.startswith("critical.")).order_by(store.event.c.seq)
        ).all()
    kinds = ["critical.raised", "critical.acknowledged", "critical.communicated"]
    assert [each.action for each in audits] == [each.kind for each in events] == kinds
    assert [each.actor for each in audits] == ["system", "Dr N", "Dr N"]
    assert audits[2].detail["recipient"] == "Sister M, ward 3"
    assert "Sister" not in str([each.payload for each in events])


def test_a_false_alert_is_closed_by_the_signature_that_denies_it(room: Room) -> None:
    for seed, more in enumerate(({"answers": {"Pneumothorax": "disagree"}}, {"normal": True}), 1):
        study = room.send(seed=seed)
        room.sign(study, **more)
        assert (room.alert(study), room.outcomes(study)) == (None, ["denied"])
        assert room.done(study) == ["closed"]


def test_a_signature_that_leaves_it_open_leaves_the_alert_open(room: Room) -> None:
    study = room.send()
    room.sign(study, answers={"Pneumothorax": "unsure"})
    alert = room.alert(study)
    assert alert is not None
    assert alert.stage == "acknowledge"
    with pytest.raises(ClinicError, match="why nobody"):
        room.criticals.close(SITE, study, "Dr N", note=" ")
    room.criticals.close(SITE, study, "Dr N", note="known, drained yesterday")
    assert (room.alert(study), room.outcomes(study)) == (None, ["closed"])


def test_a_reader_s_own_critical_finding_is_to_be_told_too(room: Room) -> None:
    study = room.send("nothing.png")
    assert room.alert(study) is None
    room.sign(study, answers={"Pneumothorax": "disagree"})  # the model had said unlikely: it is there
    alert = room.alert(study)
    assert alert is not None
    assert (alert.source, alert.finding, alert.stage) == ("reader", "Pneumothorax", "tell")
    room.tell(study)
    assert room.alert(study) is None


@pytest.mark.parametrize(
    ("name", "answers"), [("nothing.png", {"Pneumothorax": "agree"}), ("edema.png", {"Edema": "agree"})]
)
def test_what_is_not_critical_is_no_alert(room: Room, name: str, answers: dict[str, str]) -> None:
    study = room.send(name)
    room.sign(study, answers=answers)
    assert room.outcomes(study) == []


def test_who_asked_for_haste_asked_for_no_alert(room: Room) -> None:
    assert room.alert(room.send("edema.png", requested="critical")) is None


def test_who_was_told_before_the_signature_needs_not_be_told_again(room: Room) -> None:
    known = room.send()
    room.tell(known)
    assert room.criticals.listing(SITE) == []
    room.sign(known, answers={"Pneumothorax": "agree"})
    unknown = room.send("nothing.png", 2)
    room.tell(unknown, how="in person", read_back=False)
    room.sign(unknown, answers={"Pneumothorax": "disagree"})
    assert room.outcomes(known) == room.outcomes(unknown) == ["communicated"]
    assert room.criticals.listing(SITE) == []


def test_it_is_raised_once_however_often_the_list_is_ordered(room: Room) -> None:
    study = room.send()
    for _ in range(2):
        with room.ward.database.write() as connection:
            triage.refresh(connection, study, room.ward.ranking, store.now())
    assert room.outcomes(study) == [None]
    room.criticals.close(SITE, study, "Dr N", note="known")
    with room.ward.database.write() as connection:
        triage.refresh(connection, study, room.ward.ranking, store.now())
    assert room.outcomes(study) == ["closed"]


def test_a_new_image_raises_again_what_was_denied(room: Room) -> None:
    study = room.ward.take(dicom(1), "pneumothorax.dcm").study
    room.ward.work()
    room.sign(study, answers={"Pneumothorax": "disagree"})
    room.ward.take(dicom(1, SOPInstanceUID="1.2.9", InstanceNumber=2, PixelData=b"\1" * 2048), "pneumothorax 2.dcm")
    room.ward.work()
    assert room.outcomes(study) == ["denied", None]


def test_a_signature_taken_back_takes_its_word_back(room: Room) -> None:
    denied, own = room.send(), room.send("nothing.png", 2)
    room.sign(denied, answers={"Pneumothorax": "disagree"})
    room.sign(own, answers={"Pneumothorax": "disagree"})
    for study in (denied, own):
        reviews.withdraw(room.ward.database, SITE, study, "Dr N", within=timedelta(hours=1))
    alert = room.alert(denied)
    assert alert is not None
    assert alert.stage == "acknowledge"
    assert room.outcomes(own) == ["withdrawn"]


def test_a_merged_study_brings_its_alert_along(room: Room) -> None:
    one, other = room.send(seed=1), room.send("nothing.png", 2)
    models = list(room.ward.models)
    corrections = Corrections(room.ward.database, lambda connection, site: room.ward.ranking, lambda: models)
    room.criticals.acknowledge(SITE, one, "Dr N")
    corrections.merge(SITE, one, other, actor="Dr A", reason="one study")
    assert room.alert(other) is not None
    assert room.done(other) == ["acknowledged"]
    assert [each.study for each in room.criticals.listing(SITE)] == [other]


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ({"recipient": " "}, "recipient"),
        ({"recipient": "x" * 201}, "recipient"),
        ({"how": "pigeon"}, "how 'pigeon'"),
        ({"note": "x" * 2001}, "note"),
        ({"at": store.now() + timedelta(hours=1)}, "lies ahead"),
        ({"at": store.now() - timedelta(days=1)}, "before the study came"),
    ],
)
def test_what_cannot_be_is_named_and_nothing_written(room: Room, said: dict[str, Any], named: str) -> None:
    study = room.send()
    with pytest.raises(ClinicError, match=named):
        room.tell(study, **said)
    assert room.done(study) == []


def test_another_site_s_study_is_not_there(room: Room) -> None:
    study = room.send()
    for call in (
        lambda: room.criticals.of("north", study),
        lambda: room.criticals.acknowledge("north", study, "Dr N"),
        lambda: room.criticals.close("north", study, "Dr N", note="x"),
        lambda: room.criticals.tell("north", study, "Dr N", recipient="x", how="phone", read_back=True),
    ):
        with pytest.raises(NotFoundError, match="no such study"):
            call()
    with pytest.raises(ConflictError, match="is open"):
        room.criticals.acknowledge(SITE, room.send("nothing.png", 2), "Dr N")


# ---------------------------------------------------------------------- escalation


def escalated(room: Room, study: str) -> list[tuple[str, int]]:
    table = store.communication.c
    with room.ward.database.read() as connection:
        rows = connection.execute(
            sa.select(table.stage, table.step)
            .where(table.study == study, table.kind == "escalated")
            .order_by(table.step)
        )
        return [(row.stage, row.step) for row in rows]


def test_it_is_escalated_in_steps_until_somebody_acts(room: Room) -> None:
    study = room.send()
    alert = room.alert(study)
    assert alert is not None
    start = alert.opened_at
    counts = {
        minute: room.criticals.step(start + minute * MINUTE + timedelta(seconds=1))
        for minute in (1, 14, 15, 16, 24, 25, 44, 45, 64, 65)
    }
    assert [minute for minute, count in counts.items() if count] == [15, 25, 45, 65]  # 0, 10, 30, then every 20
    room.criticals.acknowledge(SITE, study, "Dr N")
    room.sign(study, answers={"Pneumothorax": "agree"})
    signed = store.now()
    assert [room.criticals.step(signed + m * MINUTE) for m in (59, 61, 62)] == [0, 1, 0]
    room.tell(study)
    assert room.criticals.step(signed + 5000 * MINUTE) == 0
    assert escalated(room, study) == [*(("acknowledge", n) for n in (1, 2, 3, 4)), ("tell", 5)]


def test_what_was_acknowledged_and_never_signed_is_escalated_again(room: Room, tmp_path: Path) -> None:
    study = room.send()
    room.criticals.acknowledge(SITE, study, "Dr N")
    start = store.now()
    assert [room.criticals.step(start + m * MINUTE) for m in (0, 59, 61, 62, 71)] == [0, 0, 1, 0, 1]
    assert escalated(room, study) == [("sign", 1), ("sign", 2)]
    with room.ward.database.read() as connection:
        alert = connection.execute(sa.select(store.alert.c.id)).scalar_one()
        told = critical.escalation(connection, f"escalated {alert} 1", patient=False)
    assert told["event"] == "critical_not_signed"
    room.sign(study, answers={"Pneumothorax": "agree"})
    with room.ward.database.read() as connection, pytest.raises(NotFoundError, match="is over"):
        critical.escalation(connection, f"escalated {alert} 1", patient=False)
    assert room.criticals.step(store.now() + 59 * MINUTE) == 0
    told_late = room.send(seed=2)
    room.tell(told_late)  # that is what matters: nothing more is owed until it is signed
    assert room.criticals.step(store.now() + 30 * MINUTE) == 0


def test_what_was_missed_while_nobody_ran_is_told_once(room: Room, tmp_path: Path) -> None:
    study = room.send()
    later = store.now() + 600 * MINUTE
    again = Store.open(tmp_path)  # another process, or the next start
    try:
        others = Criticals(again, SETTINGS, Rules())
        assert (others.step(later), room.criticals.step(later), others.step(later)) == (1, 0, 0)
    finally:
        again.close()
    assert escalated(room, study) == [("acknowledge", 1)]


@pytest.mark.parametrize("named", [False, True])
def test_a_webhook_is_told_without_the_patient_unless_the_setting_says_so(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    (tmp_path / "secret").write_text("s" * 32)
    address = f"https://pager.example/x#secret-file={tmp_path / 'secret'}"
    settings = SETTINGS.model_copy(update={"outputs_webhook": [address], "outputs_webhook_patient": named})
    outbox = delivery.Outbox(room.ward.database, room.ward.archive, settings)
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(delivery.destinations, "send_webhook", lambda to, content, key: sent.append(dict(content)))
    study = room.send()
    room.criticals.step(store.now() + 16 * MINUTE)
    while outbox.step(outbox.destinations[0]):
        pass
    [told] = [each for each in sent if each["event"] != "critical_finding"]
    assert (told["event"], told["study"], told["finding"]) == ("critical_not_acknowledged", study, "Pneumothorax")
    assert ("patient" in told) is named
    sent.clear()
    room.criticals.step(store.now() + 26 * MINUTE)
    room.tell(study)  # before it went out: nothing is to be told any more
    while outbox.step(outbox.destinations[0]):
        pass
    assert sent == []
    outbox.stop()
