"""Whatever comes, is corrected or goes: a patient who once had a side never has another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wetread.errors import DatasetError
from wetread.improve.sides import FILE, TORN, Sides

PATIENTS, STUDIES = st.sampled_from([f"p{n}" for n in range(12)]), st.sampled_from([f"s{n}" for n in range(15)])
VERSIONS = st.lists(
    st.tuples(st.dictionaries(STUDIES, PATIENTS), st.frozensets(PATIENTS), st.floats(0, 0.4), st.floats(0, 0.5)),
    min_size=1,
    max_size=5,
)


@given(VERSIONS)
def test_nobody_ever_moves(versions: list[tuple[dict[str, str], frozenset[str], float, float]]) -> None:
    """Each version has any studies, of any patients (identifiers are corrected), with other samples and shares."""
    sides, patients, studies = Sides(), dict[str, set[str]](), dict[str, set[str]]()
    of = dict[str, set[str]]()  # every study that was ever taken for a patient's
    for held, sampled, valid, test in versions:
        before = sides
        found, sides = before.assign(held, sampled, valid=valid, test=test)
        for study, patient in held.items():
            of.setdefault(patient, set()).add(study)
            if patient in found:
                patients.setdefault(patient, set()).add(found[patient])
                studies.setdefault(study, set()).add(found[patient])
        for patient, side in found.items():
            assert all(studies.get(study, {side}) == {side} for study in of[patient])
        for was, now in ((before.patients, sides.patients), (before.studies, sides.studies)):
            assert {name: now[name] for name in was if now[name] != TORN}.items() <= was.items()
            away = was.keys() - held.keys() - set(held.values())
            assert {name: now[name] for name in away} == {name: was[name] for name in away}
        known = set(before.patients) | {p for s, p in held.items() if s in before.studies}
        for patient in set(held.values()) - known:
            assert patient in found
            assert patient not in sampled or found[patient] == "test"
        assert before.assign(held, sampled, valid=valid, test=test) == (found, sides)
    assert all(len(where) == 1 for where in (*patients.values(), *studies.values()))


@given(VERSIONS, VERSIONS)
def test_who_was_torn_stays_out_whatever_goes_or_is_corrected(
    versions: list[tuple[dict[str, str], frozenset[str], float, float]],
    later: list[tuple[dict[str, str], frozenset[str], float, float]],
) -> None:
    sides, torn = Sides(), set[str]()
    for held, sampled, valid, test in [*versions, *later]:
        found, sides = sides.assign(held, sampled, valid=valid, test=test)
        out = set(held.values()) - found.keys()
        torn |= out | {study for study, patient in held.items() if patient in out}
        assert not torn & found.keys()
        assert not torn & {study for study, patient in held.items() if patient in found}


def test_what_tore_a_patient_may_go_and_they_still_do_not_judge() -> None:
    sides = Sides({"A": "train", "B": "test"}, {"S1": "train", "S2": "test"})
    shares = {"valid": 0.1, "test": 0.2}
    found, torn = sides.assign({"S1": "B", "S2": "B"}, frozenset(), **shares)
    assert found == {}
    assert torn.assign({"S2": "B", "S3": "B"}, frozenset(), **shares)[0] == {}  # S1 was removed, or opened again
    assert torn.assign({"S2": "other"}, frozenset(), **shares)[0] == {}  # and then the identifier was corrected
    assert torn.assign({"S4": "A"}, frozenset(), **shares)[0] == {"A": "train"}
    assert torn.with_those_of(sides) == sides.with_those_of(torn) == torn  # an older version knows nothing of it
    assert Sides({"C": "test"}).with_those_of(Sides({"C": "train"})).patients == {"C": TORN}


def test_the_shares_are_met_and_who_is_added_moves_nobody() -> None:
    many = {f"s{n}": f"{n:032x}" for n in range(1000)}
    found, _ = Sides().assign(many, frozenset(), valid=0.1, test=0.2)
    count = {side: list(found.values()).count(side) for side in ("train", "valid", "test")}
    for side, share in (("train", 0.7), ("valid", 0.1), ("test", 0.2)):
        assert abs(count[side] - 1000 * share) < 5 * np.sqrt(1000 * share * (1 - share))
    few = dict(list(many.items())[:100])
    alone, _ = Sides().assign(few, frozenset(), valid=0.1, test=0.2)
    assert alone.items() <= found.items()


def test_they_are_written_and_read(tmp_path: Path) -> None:
    sides = Sides({"p": "train", "q": TORN}, {"s": "test", "t": TORN})
    sides.write(tmp_path)
    assert Sides.read(tmp_path) == sides
    for bad in (
        "",
        "[]",
        '{"patients": {}}',
        '{"patients": 1, "studies": {}}',
        '{"patients": {"p": "x"}, "studies": {}}',
    ):
        (tmp_path / FILE).write_text(bad)
        with pytest.raises(DatasetError, match=r"sides\.json"):
            Sides.read(tmp_path)
