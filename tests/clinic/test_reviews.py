"""What a reader may decide, and what is kept of it."""

from __future__ import annotations

from datetime import timedelta

import owing
import pytest
import receivers
import sqlalchemy as sa
from ward import SITE, Ward, dicom, png

from wetread.clinic import audit, reviews, store, worklist
from wetread.errors import ClinicError, ConflictError, NotFoundError


@pytest.fixture
def key(ward: Ward) -> str:
    received = ward.take(png(), "edema.png")
    ward.work()
    return received.study


def test_a_signed_review_is_kept_with_what_the_model_had_said(ward: Ward, key: str) -> None:
    reviews.save(
        ward.database, SITE, key, "dr",
        answers={"Edema": "agree", "Pneumothorax": "disagree"}, added=["Fracture"], verdict="right", note="clear",
        sign=True,
    )  # fmt: skip
    found = worklist.study(ward.database, SITE, key)
    assert (found.row.status, found.row.reading) == ("reviewed", "signed")
    review = found.reviews[0]
    assert review.answers == {"Edema": "agree", "Pneumothorax": "disagree", "Fracture": "added"}
    assert (review.reader, review.verdict, review.note, review.state) == ("dr", "right", "clear", "signed")
    assert review.signed_at is not None
    with ward.database.read() as connection:
        rows = connection.execute(sa.select(store.review_finding).order_by(store.review_finding.c.finding)).all()
        assert [(r.finding, r.call, r.probability) for r in rows] == [
            ("Edema", "likely", 0.9),
            ("Fracture", None, None),
            ("Pneumothorax", "unlikely", 0.1),
        ]
        assert connection.execute(sa.select(store.review.c.models)).scalar() == list(ward.models)


def test_a_draft_is_one_and_is_replaced(ward: Ward, key: str) -> None:
    first = reviews.save(ward.database, SITE, key, "dr", answers={"Edema": "agree"})
    second = reviews.save(ward.database, SITE, key, "dr", answers={"Pneumothorax": "unsure"}, note="hm")
    found = worklist.study(ward.database, SITE, key)
    assert first == second
    assert len(found.reviews) == 1
    assert found.reviews[0].answers == {"Pneumothorax": "unsure"}
    assert (found.row.status, found.row.reading) == ("claimed", "draft")


def test_a_signed_study_cannot_be_changed(ward: Ward, key: str) -> None:
    reviews.save(ward.database, SITE, key, "dr", sign=True)
    for change in (lambda: reviews.save(ward.database, SITE, key, "dr", note="x"),
                   lambda: reviews.save(ward.database, SITE, key, "other", sign=True),
                   lambda: reviews.claim(ward.database, SITE, key, "dr")):  # fmt: skip
        with pytest.raises(ConflictError, match="signed already"):
            change()
    assert worklist.study(ward.database, SITE, key).reviews[0].note == ""


def test_who_claims_first_reads(ward: Ward, key: str) -> None:
    until = reviews.claim(ward.database, SITE, key, "a")
    with pytest.raises(ConflictError, match="claimed by a"):
        reviews.claim(ward.database, SITE, key, "b")
    with pytest.raises(ConflictError, match="claimed by a"):
        reviews.save(ward.database, SITE, key, "b", sign=True)
    assert reviews.claim(ward.database, SITE, key, "a", now=until - timedelta(minutes=1)) > until
    reviews.release(ward.database, SITE, key, "b")  # not theirs: nothing happens
    assert worklist.row(ward.database, SITE, key).claimed_by == "a"
    reviews.release(ward.database, SITE, key, "a")
    reviews.claim(ward.database, SITE, key, "b")
    assert worklist.row(ward.database, SITE, key).claimed_by == "b"


def test_a_claim_that_ran_out_holds_nobody_up(ward: Ward, key: str) -> None:
    until = reviews.claim(ward.database, SITE, key, "a")
    reviews.claim(ward.database, SITE, key, "b", now=until)
    assert worklist.row(ward.database, SITE, key, now=until).claimed_by == "b"


def test_unanalysed_studies_can_be_read(ward: Ward) -> None:
    key = ward.take(b"hello", "note.txt").study
    ward.work()
    reviews.save(ward.database, SITE, key, "dr", added=["Fracture"], sign=True)
    assert worklist.row(ward.database, SITE, key).status == "reviewed"


@pytest.mark.parametrize(
    ("review", "named"),
    [
        ({"answers": {"Edema": "maybe"}}, "'maybe'"),
        ({"answers": {"Gout": "agree"}}, "'Gout'"),
        ({"added": [""]}, "no finding"),
        ({"added": ["x" * 65]}, "no finding"),
        ({"added": ["a\nb"]}, "no finding"),
        ({"note": "x" * 10_001}, "10001 characters"),
        ({"verdict": "fine"}, "'fine'"),
        ({"normal": True, "answers": {"Edema": "agree"}, "sign": True}, "contradicts 'Edema'"),
        ({"normal": True, "answers": {"Pneumothorax": "disagree"}, "sign": True}, "contradicts 'Pneumothorax'"),
        ({"normal": True, "added": ["Fracture"], "sign": True}, "contradicts 'Fracture'"),
    ],
)
def test_what_cannot_be_is_named_and_changes_nothing(
    ward: Ward, key: str, review: dict[str, object], named: str
) -> None:
    with pytest.raises(ClinicError, match=named):
        reviews.save(ward.database, SITE, key, "dr", **review)  # type: ignore[arg-type]
    found = worklist.study(ward.database, SITE, key)
    assert (found.reviews, found.claim, found.row.reading) == ((), None, "unread")


def test_normal_agrees_with_no_finding_devices_and_what_the_model_called_unlikely(ward: Ward, key: str) -> None:
    answers = {"No Finding": "agree", "Support Devices": "agree", "Edema": "disagree", "Pneumothorax": "agree"}
    reviews.save(ward.database, SITE, key, "dr", answers=answers, normal=True, sign=True)
    assert worklist.study(ward.database, SITE, key).reviews[0].normal


def test_nothing_that_came_unseen_is_signed_over(ward: Ward) -> None:
    first = ward.take(png(1), "edema.png", study="two")
    second = ward.take(png(2), "late.png", study="two")
    assert first.study == second.study
    ward.work()
    reviews.save(ward.database, SITE, first.study, "dr", note="typed", seen=[first.image])  # a draft may be kept
    with pytest.raises(reviews.UnseenError, match="an image came that you have not seen") as error:
        reviews.save(ward.database, SITE, first.study, "dr", note="typed", sign=True, seen=[first.image, "other"])
    assert error.value.images == [second.image]
    found = worklist.study(ward.database, SITE, first.study)
    assert [(review.state, review.note) for review in found.reviews] == [("draft", "typed")]
    reviews.save(ward.database, SITE, first.study, "dr", sign=True, seen=[second.image, first.image])
    with ward.database.read() as connection:
        signed = sa.select(store.audit.c.detail).where(store.audit.c.action == "review.signed")
        assert connection.execute(signed).scalar_one()["images"] == [first.image, second.image]


def test_what_is_not_shown_need_not_be_seen(ward: Ward) -> None:
    first = ward.take(dicom(1))
    assert ward.take(dicom(1, PatientComments="new pixels", Rows=16)).quarantined
    reviews.save(ward.database, SITE, first.study, "dr", sign=True, seen=[first.image])
    assert worklist.row(ward.database, SITE, first.study).reading == "signed"


def test_no_such_study(ward: Ward) -> None:
    for call in (reviews.claim, reviews.release, reviews.save):
        with pytest.raises(NotFoundError):
            call(ward.database, SITE, "nothing", "dr")


def test_deeds_are_audited_in_a_chain(ward: Ward, key: str) -> None:
    reviews.claim(ward.database, SITE, key, "dr")
    reviews.save(ward.database, SITE, key, "dr", sign=True)
    with ward.database.read() as connection:
        rows = connection.execute(sa.select(store.audit).order_by(store.audit.c.seq)).all()
    assert [(r.actor, r.action, r.object) for r in rows] == [
        ("intake", "image.received", key),
        ("dr", "study.claimed", key),
        ("dr", "review.signed", key),
    ]
    assert audit.verify(ward.database) is None


class TestAddendum:
    def test_it_is_a_further_review_that_names_the_one_before_which_stays_as_it_was(self, ward: Ward, key: str) -> None:
        first = reviews.save(ward.database, SITE, key, "dr", answers={"Edema": "agree"}, note="one", sign=True)
        before = worklist.study(ward.database, SITE, key).reviews[0]
        second = reviews.save(
            ward.database, SITE, key, "other", parent=first, answers={"Edema": "disagree"}, added=["Fracture"],
            note="two", sign=True,
        )  # fmt: skip
        third = reviews.save(ward.database, SITE, key, "dr", parent=second, note="three", sign=True)
        found = worklist.study(ward.database, SITE, key)
        assert found.reviews[0] == before
        assert [(r.review, r.parent, r.reader, r.note) for r in found.reviews] == [
            (first, None, "dr", "one"), (second, first, "other", "two"), (third, second, "dr", "three"),
        ]  # fmt: skip
        assert found.reviews[2].answers == {"Edema": "disagree", "Fracture": "added"}  # a bare note takes nothing back
        assert (found.row.reading, found.claim) == ("signed", None)

    def test_its_draft_leaves_the_study_signed(self, ward: Ward, key: str) -> None:
        first = reviews.save(ward.database, SITE, key, "dr", sign=True)
        draft = reviews.save(ward.database, SITE, key, "dr", parent=first, answers={}, note="mo")
        found = worklist.study(ward.database, SITE, key)
        assert (found.row.reading, found.claim) == ("signed", None)
        assert [(r.review, r.state) for r in found.reviews] == [(first, "signed"), (draft, "draft")]
        assert reviews.save(ward.database, SITE, key, "dr", parent=first, note="more", sign=True) == draft

    def test_it_is_to_the_newest_review_of_a_signed_study_only(self, ward: Ward, key: str) -> None:
        with pytest.raises(ConflictError, match="is open"):
            reviews.save(ward.database, SITE, key, "dr", parent="any", note="x", sign=True)
        first = reviews.save(ward.database, SITE, key, "dr", sign=True)
        reviews.save(ward.database, SITE, key, "a", parent=first, note="x", sign=True)
        with pytest.raises(ConflictError, match="an addendum was signed meanwhile"):
            reviews.save(ward.database, SITE, key, "b", parent=first, note="y", sign=True)


class TestWithdrawal:
    SOON = timedelta(seconds=30)

    def test_what_was_signed_is_a_draft_again_and_the_signature_stays_in_the_history(
        self, ward: Ward, key: str
    ) -> None:
        first = reviews.save(ward.database, SITE, key, "dr", answers={"Edema": "agree"}, note="hm", sign=True)
        draft = reviews.withdraw(ward.database, SITE, key, "dr", within=self.SOON)
        found = worklist.study(ward.database, SITE, key)
        assert [(r.review, r.state, r.answers, r.note) for r in found.reviews] == [
            (first, "withdrawn", {"Edema": "agree"}, "hm"), (draft, "draft", {"Edema": "agree"}, "hm"),
        ]  # fmt: skip
        assert (found.row.reading, found.row.claimed_by) == ("draft", "dr")
        with ward.database.read() as connection:
            done = sa.select(store.audit.c.actor, store.audit.c.detail).where(
                store.audit.c.action == "review.withdrawn"
            )
            assert connection.execute(done).one() == ("dr", {"review": first})
        reviews.save(ward.database, SITE, key, "dr", answers={"Edema": "disagree"}, sign=True)
        assert worklist.row(ward.database, SITE, key).reading == "signed"

    def test_only_ones_own_newest_and_only_in_time(self, ward: Ward, key: str) -> None:
        with pytest.raises(ConflictError, match="nothing to take back"):
            reviews.withdraw(ward.database, SITE, key, "dr", within=self.SOON)
        first = reviews.save(ward.database, SITE, key, "dr", sign=True)
        with pytest.raises(ConflictError, match="nothing to take back"):
            reviews.withdraw(ward.database, SITE, key, "other", within=self.SOON)
        signed = worklist.study(ward.database, SITE, key).reviews[0].signed_at
        assert signed is not None
        for late in (signed + self.SOON, signed - timedelta(seconds=1)):
            with pytest.raises(ConflictError, match="write an addendum"):
                reviews.withdraw(ward.database, SITE, key, "dr", within=self.SOON, now=late)
        reviews.save(ward.database, SITE, key, "other", parent=first, note="x", sign=True)
        with pytest.raises(ConflictError, match="nothing to take back"):
            reviews.withdraw(ward.database, SITE, key, "dr", within=self.SOON)

    def test_an_addendum_taken_back_leaves_the_study_signed_and_loses_no_word(self, ward: Ward, key: str) -> None:
        first = reviews.save(ward.database, SITE, key, "dr", note="one", sign=True)
        second = reviews.save(ward.database, SITE, key, "dr", parent=first, note="two", sign=True)
        reviews.save(ward.database, SITE, key, "dr", parent=second, note="begun")
        reviews.withdraw(ward.database, SITE, key, "dr", within=self.SOON)
        found = worklist.study(ward.database, SITE, key)
        assert found.row.reading == "signed"
        assert [(r.state, r.parent, r.note) for r in found.reviews] == [
            ("signed", None, "one"), ("withdrawn", first, "two"), ("draft", first, "two\n\nbegun"),
        ]  # fmt: skip

    def test_nothing_is_sent_before_the_time_is_over_nor_afterwards(self, ward: Ward, key: str) -> None:
        with receivers.mllp("AA") as receiver:
            box = owing.outbox(ward, outputs_hl7=[f"mllp://127.0.0.1:{receiver.port}"], undo_seconds=30)
            reviews.save(ward.database, SITE, key, "dr", note="unripe", sign=True)
            assert owing.drain(box) == 0
            reviews.withdraw(ward.database, SITE, key, "dr", within=self.SOON)
            reviews.save(ward.database, SITE, key, "dr", note="ripe", sign=True)
            with ward.database.write() as connection:
                soon = {row.due_at for row in connection.execute(sa.select(store.delivery)) if row.state == "queued"}
                assert soon == {worklist.study(ward.database, SITE, key).reviews[-1].signed_at + self.SOON}  # type: ignore[operator]
                connection.execute(store.delivery.update().values(due_at=store.now()))
            assert owing.drain(box) == 1
            assert len(receiver.got) == 1
            assert "ripe" in receiver.got[0]
            assert "unripe" not in receiver.got[0]
        with pytest.raises(ConflictError, match="sent already"):
            reviews.withdraw(ward.database, SITE, key, "dr", within=self.SOON)


class TestVersions:
    def test_a_newer_draft_of_another_page_is_not_written_over(self, ward: Ward, key: str) -> None:
        reviews.save(ward.database, SITE, key, "dr", note="a", version=reviews.Version(0, "one"))
        reviews.save(ward.database, SITE, key, "dr", note="ab", version=reviews.Version(1, "one"))
        for sign in (False, True):
            with pytest.raises(reviews.NewerError, match="newer draft") as error:
                reviews.save(ward.database, SITE, key, "dr", note="z", sign=sign, version=reviews.Version(0, "two"))
            assert error.value.revision == 2
        assert [r.note for r in worklist.study(ward.database, SITE, key).reviews] == ["ab"]
        reviews.save(ward.database, SITE, key, "dr", note="z", version=reviews.Version(2, "two"))

    def test_an_answer_that_was_lost_makes_no_conflict(self, ward: Ward, key: str) -> None:
        for note in ("a", "ab"):
            reviews.save(ward.database, SITE, key, "dr", note=note, version=reviews.Version(0, "one"))
        assert [(r.note, r.revision) for r in worklist.study(ward.database, SITE, key).reviews] == [("ab", 2)]
