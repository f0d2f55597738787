"""Taking in: bytes, then row, then word; same is success, other is kept apart, nothing disappears."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest
import sqlalchemy as sa
from ward import SITE, Ward, dicom, png

from wetread.clinic import reviews, store, worklist
from wetread.clinic.archive import TooLargeError
from wetread.clinic.store import Store
from wetread.clinic.worklist import Study
from wetread.errors import ClinicError, NotFoundError


def study(ward: Ward, key: str) -> Study:
    return worklist.study(ward.database, SITE, key)


def kinds(ward: Ward) -> list[str]:
    with ward.database.read() as connection:
        return list(connection.execute(sa.select(store.event.c.kind).order_by(store.event.c.seq)).scalars())


def test_the_row_is_there_before_the_word(ward: Ward) -> None:
    received = ward.take(png(), "a.png")
    found = study(ward, received.study)
    assert (found.row.status, found.row.image_count, found.row.reason) == ("received", 1, "waiting for analysis")
    assert ward.archive.path(found.images[0].sha256).read_bytes() == png()
    assert kinds(ward) == ["instance.stored"]


def test_the_same_bytes_again_are_success(ward: Ward) -> None:
    first, again = ward.take(png(), "a.png"), ward.take(png(), "b.png")
    assert (first.new, again.new) == (True, False)
    assert (again.study, again.image) == (first.study, first.image)
    assert kinds(ward) == ["instance.stored"]


def test_pictures_are_studies_of_their_own_unless_said_otherwise(ward: Ward) -> None:
    alone = [ward.take(png(i)).study for i in range(2)]
    together = [ward.take(png(i), study="visit 7").study for i in range(2)]
    named = ward.take(png(5), study=alone[0]).study
    assert len({*alone, *together}) == 3
    assert named == alone[0]
    assert study(ward, together[0]).row.image_count == 2


def test_an_unknown_study_is_refused(ward: Ward) -> None:
    with pytest.raises(NotFoundError):
        ward.take(png(), study=store.new_id())
    with pytest.raises(ClinicError, match="label of 1 to 64"):
        ward.take(png(), study="x" * 65)


def test_dicom_images_meet_in_their_study(ward: Ward) -> None:
    a = ward.take(dicom(0, ViewPosition="PA"))
    b = ward.take(dicom(1, ViewPosition="LL", StudyInstanceUID="1.2.1.1", PatientID="P0"), study="ignored")
    assert a.study == b.study
    found = study(ward, a.study)
    assert (found.row.image_count, found.row.views) == (2, "PA+LAT")


def test_it_is_kept_what_took_an_image_and_who_sent_it_readable_or_not(ward: Ward) -> None:
    taken = {"Manufacturer": "Acme", "ManufacturerModelName": "DR", "StationName": "Room 3"}
    ward.take(dicom(0, **taken), actor="AE GATE")
    ward.take(dicom(1, **taken, BitsAllocated=13), actor="AE GATE")
    ward.take(png(), "a.png", actor="folder")
    ward.take(dicom(0, **taken | {"StationName": "Room 4"}), actor="AE OTHER")  # a corrected header
    table = store.instance.c
    with ward.database.read() as connection:
        wanted = sa.select(table.device, table.station, table.source).where(table.state == "stored")
        rows = [tuple(row) for row in connection.execute(wanted)]
    assert set(rows) == {("ACME DR", "ROOM 4", "AE GATE"), ("ACME DR", "ROOM 3", "AE GATE"), (None, None, "folder")}


def test_other_bytes_under_a_known_uid_are_kept_apart(ward: Ward) -> None:
    first = ward.take(dicom(0))
    other = ward.take(dicom(1, SOPInstanceUID="1.2.1.3"))
    assert (other.quarantined, other.study) == (True, first.study)
    found = study(ward, first.study)
    assert [image.state for image in found.images] == ["stored", "quarantined"]
    assert found.row.image_count == 1
    assert any("quarantined" in caution for caution in found.cautions)
    assert kinds(ward) == ["instance.stored", "instance.quarantined"]
    assert ward.take(dicom(1, SOPInstanceUID="1.2.1.3")).new is False
    assert ward.work() == 1  # the quarantined one is not analysed


def test_one_study_uid_and_two_patients_stay_two_studies(ward: Ward) -> None:
    a = ward.take(dicom(0))
    b = ward.take(dicom(1, StudyInstanceUID="1.2.1.1"))
    assert a.study != b.study
    for key in (a.study, b.study):
        assert any("another patient" in caution for caution in study(ward, key).cautions)


def test_no_study_uid_is_a_caution_not_a_loss(ward: Ward) -> None:
    received = ward.take(dicom(0, StudyInstanceUID=""))
    assert "no Study Instance UID" in study(ward, received.study).cautions


@pytest.mark.parametrize(
    ("requested", "tag", "wanted"),
    [(None, None, "routine"), (None, "STAT", "critical"), ("urgent", None, "urgent"), ("routine", "STAT", "routine")],
)
def test_the_requested_priority_is_the_floor(ward: Ward, requested: str | None, tag: str | None, wanted: str) -> None:
    elements = {"RequestedProcedurePriority": tag} if tag else {}
    received = ward.take(dicom(0, **elements), "edema.dcm", requested=requested)
    assert study(ward, received.study).row.priority == wanted
    ward.work()
    assert study(ward, received.study).row.priority == ("critical" if wanted == "critical" else "urgent")


def test_a_word_for_priority_that_is_none(ward: Ward) -> None:
    with pytest.raises(ClinicError, match="whenever"):
        ward.take(png(), requested="whenever")
    received = ward.take(dicom(0, RequestedProcedurePriority="WHENEVER"))
    assert any("not known" in caution for caution in study(ward, received.study).cautions)


def test_bytes_that_are_no_radiograph_stay_in_the_list(ward: Ward) -> None:
    keys = [ward.take(content, "x").study for content in (b"", b"hello", b"\0" * 128 + b"DICM", b"\xff\xd8\xff")]
    ward.work()
    page = worklist.page(ward.database, SITE)
    assert [row.study for row in page.rows] == keys
    assert {(row.status, row.code) for row in page.rows} == {("not_analysed", "UNREADABLE")}
    assert all(row.reason.startswith("not analysed: ") for row in page.rows)


def test_too_large_is_refused_and_leaves_nothing(ward: Ward) -> None:
    with pytest.raises(TooLargeError):
        ward.take(bytes(2**20 + 1))
    assert worklist.page(ward.database, SITE).rows == ()
    assert list(ward.archive.names()) == []


def test_an_image_after_the_signature_opens_the_study_again(ward: Ward) -> None:
    key = ward.take(png(0)).study
    ward.work()
    reviews.save(ward.database, SITE, key, "dr", sign=True)
    assert worklist.page(ward.database, SITE).rows == ()
    ward.take(png(1), study=key)
    found = study(ward, key)
    assert (found.row.status, found.reviews[0].state) == ("analysed", "signed")
    assert "new image since review" in found.cautions
    assert "study.reopened" in kinds(ward)


def test_files_without_rows_are_adopted_and_rows_without_files_reported(ward: Ward) -> None:
    kept = ward.take(png(0))
    stored = ward.archive.put(BytesIO(png(1)), limit=2**20)  # killed before its row was committed
    lost = ward.take(png(2))
    ward.archive.path(study(ward, lost.study).images[0].sha256).unlink()
    adopted, missing, _ = ward.intake.adopt(SITE)
    assert missing == [lost.image]
    assert len(adopted) == 1
    assert study(ward, adopted[0]).images[0].sha256 == stored.sha256
    assert kept.study not in adopted
    assert ward.intake.adopt(SITE) == ([], missing, [])
    assert ward.take(png(1)).study == adopted[0]  # the sender tries again: idempotent success


def test_a_commit_that_fails_is_no_success(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise sa.exc.OperationalError("insert", {}, Exception("database gone"))

    with monkeypatch.context() as patch:
        patch.setattr(store, "emit", broken)
        with pytest.raises(sa.exc.OperationalError):
            ward.take(png())
    assert worklist.page(ward.database, SITE).rows == ()
    adopted, _, _ = ward.intake.adopt(SITE)
    assert len(adopted) == 1


@pytest.mark.parametrize("label", [None, "two views"])
def test_what_a_crash_left_without_a_row_goes_where_it_was_sent(
    ward: Ward, monkeypatch: pytest.MonkeyPatch, label: str | None
) -> None:
    sent = {"actor": "AE XRAY", "study": label, "requested": "urgent"}

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ward.intake, "_register", killed)
        with pytest.raises(KeyboardInterrupt):
            ward.intake.take(BytesIO(png()), "file", "north", **sent)
    assert len(list(ward.archive.names())) == len(list(ward.archive.noted())) == 1
    (adopted,), _, _ = ward.intake.adopt(SITE)
    assert list(ward.archive.noted()) == []
    assert worklist.page(ward.database, SITE).rows == ()
    assert worklist.row(ward.database, "north", adopted).priority == "urgent"
    with ward.database.read() as connection:
        assert connection.execute(sa.select(store.audit.c.actor)).scalars().all() == ["AE XRAY"]
    again = ward.intake.take(BytesIO(png()), "file", "north", **sent)
    assert (again.study, again.new) == (adopted, False)


def test_a_study_that_is_gone_meanwhile_keeps_no_file_out(ward: Ward) -> None:
    note = {"site": "north", "actor": "upload", "study": store.new_id(), "requested": None}
    ward.archive.put(BytesIO(png()), limit=2**20, origin=json.dumps(note))
    (adopted,), _, _ = ward.intake.adopt(SITE)
    assert worklist.row(ward.database, "north", adopted).study == adopted


def test_a_note_that_outlived_its_crash_is_dropped(ward: Ward) -> None:
    content = png()
    key = ward.take(content).study
    ward.archive.put(BytesIO(content), limit=2**20, origin="not even JSON")
    assert ward.intake.adopt(SITE) == ([], [], [])
    assert list(ward.archive.noted()) == []
    assert worklist.row(ward.database, SITE, key).study == key


def test_a_file_that_cannot_be_read_keeps_no_other_out(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = [ward.archive.put(BytesIO(png(seed)), limit=2**20).sha256 for seed in range(3)]
    path, broken = ward.archive.path, sorted(stored)[0]

    def failing(sha256: str) -> Path:
        if sha256 == broken:
            raise ClinicError("came back with other bytes")
        return path(sha256)

    with monkeypatch.context() as patch:
        patch.setattr(ward.archive, "path", failing)
        adopted, missing, unreadable = ward.intake.adopt(SITE)
    assert (len(adopted), missing, unreadable) == (2, [], [f"{broken}: came back with other bytes"])
    assert len(ward.intake.adopt(SITE)[0]) == 1  # it was left for the next time


def test_many_senders_of_the_same_and_of_different_files(tmp_path: Path) -> None:
    ward = Ward(tmp_path)
    barrier = threading.Barrier(8)

    def send(number: int) -> tuple[str, bool]:
        barrier.wait()
        received = ward.take(png(number % 4))
        return received.image, received.new

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(send, range(8)))
    assert len({image for image, _ in results}) == 4
    assert sum(new for _, new in results) == 4
    assert worklist.page(ward.database, SITE).counts.unread == 4
    ward.database.close()


def test_a_change_of_models_queues_what_is_unread(ward: Ward) -> None:
    from ward import NameReader

    ward.take(png(0), "edema.png")
    ward.work()
    newer = NameReader("names", "2")
    retired, ward.models = dict(ward.models), {newer.id: newer}
    ward.worker.models = ward.models
    assert ward.intake.backfill() == 1
    assert ward.intake.backfill() == 0
    assert ward.work() == 1
    found = worklist.page(ward.database, SITE).rows[0]
    assert found.model == "names 2"
    assert next(iter(retired.values())).calls == ["edema.png"]


def test_sites_do_not_meet(ward: Ward) -> None:
    a = ward.take(dicom(0))
    b = ward.intake.take(BytesIO(dicom(0)), "same", "elsewhere")
    assert a.study != b.study
    assert [row.study for row in worklist.page(ward.database, "elsewhere").rows] == [b.study]
    with pytest.raises(NotFoundError):
        worklist.study(ward.database, "elsewhere", a.study)


def test_the_database_may_be_opened_by_two(ward: Ward, tmp_path: Path) -> None:
    key = ward.take(png()).study
    second = Store.open(tmp_path)
    assert worklist.row(second, SITE, key).status == "received"
    second.close()
