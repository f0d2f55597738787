"""What readers signed, as a verdict takes it: the last word of whoever signed first."""

from __future__ import annotations

from ward import SITE, NameReader, Ward, png

from wetread.clinic import deploying, own_call, reviews, store
from wetread.clinic.deploying import Candidate
from wetread.improve import paired

OLD, NEW = NameReader("names", "1"), NameReader("names", "2")


def say(ward: Ward, study: str, reader: str, edema: str | None, *, blind: bool = False) -> None:
    """Sign a study, or add to what is signed; without an answer nothing but a note is added."""
    if blind:
        own_call.record(ward.database, SITE, study, reader, is_blind=True, normal=False, findings=["Edema"])
    with ward.database.read() as connection:
        before = reviews.newest(connection, study)
    reviews.save(
        ward.database, SITE, study, reader, answers={"Edema": edema} if edema else None, note="seen again",
        sign=True, parent=before.id if before else None, is_blind=blind,
    )  # fmt: skip


CASES: list[tuple[list[tuple[str, str | None]], bool | None, bool]] = [  # who signs what, Edema, still read blind
    ([("ann", "agree")], True, True),
    ([("ann", "agree"), ("ann", "disagree")], False, False),  # corrected, when the model's word was known
    ([("ann", "agree"), ("ann", "unsure")], None, False),
    ([("ann", "agree"), ("ann", None)], True, True),  # a note and nothing else
    ([("ann", "agree"), ("ben", "disagree")], True, True),
    ([("ann", "agree"), ("ben", "disagree"), ("ann", None)], True, True),  # a note to what ben said
    ([("ann", "disagree"), ("ben", "unsure"), ("ann", "agree")], True, False),
]


def test_a_readers_own_addendum_counts_and_no_one_elses(ward: Ward) -> None:
    ward.models.update({model.id: model for model in (OLD, NEW)})
    with ward.database.write() as connection:
        store.ensure_site(connection, SITE)
        deploying.first(connection, SITE, [Candidate("s", OLD.id, "names", "1")], (), whole=False)
        deploying.shadow(connection, "", Candidate("s", NEW.id, "names", "2"), "tester", "", home=SITE)
    rounds = [(case, True) for case in CASES] + [(case, False) for case in CASES[:2]]
    studies = [ward.take(png(seed), "edema.png").study for seed in range(len(rounds))]
    ward.work()
    for study, ((said, _, _), alone) in zip(studies, rounds, strict=True):
        for n, (reader, answer) in enumerate(said):
            say(ward, study, reader, answer, blind=alone and n == 0)
    with ward.database.read() as connection:
        row = deploying.challenger(deploying.find(connection, ""))
        found = paired.gather(connection, row, OLD.id, SITE, 1000)
    assert set(found.studies) == set(studies)
    assert [found.truth[study].get("Edema") for study in studies] == [there for (_, there, _), _ in rounds]
    assert [study in found.blind for study in studies] == [blind and alone for (_, _, blind), alone in rounds]
