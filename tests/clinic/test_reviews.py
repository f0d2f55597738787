"""What a reader may decide, and what is kept of it."""

from __future__ import annotations

from datetime import timedelta

import pytest
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
