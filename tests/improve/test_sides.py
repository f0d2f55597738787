"""Whatever comes, is corrected or goes: a patient who once had a side never has another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wetread.errors import DatasetError
from wetread.improve.sides import FILE, Sides

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
    for held, sampled, valid, test in versions:
        before = sides
        found, sides = before.assign(held, sampled, valid=valid, test=test)
        for study, patient in held.items():
            if patient in found:
                patients.setdefault(patient, set()).add(found[patient])
                studies.setdefault(study, set()).add(found[patient])
        assert found.items() >= {p: s for p, s in before.patients.items() if p in found}.items()
        assert sides.patients.items() >= before.patients.items()
        assert sides.studies.items() >= before.studies.items()
        known = set(before.patients) | {p for s, p in held.items() if s in before.studies}
        for patient in set(held.values()) - known:
            assert patient in found
            assert patient not in sampled or found[patient] == "test"
        assert before.assign(held, sampled, valid=valid, test=test) == (found, sides)
    assert all(len(where) == 1 for where in (*patients.values(), *studies.values()))


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
    sides = Sides({"p": "train"}, {"s": "test"})
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
