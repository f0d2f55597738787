"""On what a candidate is judged: what was named strictly, what was added only where it can tell something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from squares import SIDE, write_dataset

from wetread.dataset.dataset import Dataset
from wetread.errors import DatasetError
from wetread.evaluate import gate_file, hard
from wetread.evaluate.gate_file import Gates
from wetread.evaluate.hard import Batch, Case
from wetread.findings import PNEUMONIA
from wetread.improve import trials
from wetread.improve.curate import AUDIT
from wetread.improve.trials import FIXED, FOUND, SAMPLE, Trials

CHAMPION, OTHER = "c" * 64, "d" * 64
COMPARED = {"min_positives": 3, "margin": {"Pneumonia": {"auroc": 0.05}}, "floor": {"Pneumonia": {"auroc": 0.9}}}


def dataset(folder: Path) -> Dataset:
    labels = np.eye(2, dtype=np.float32)[[0] * 6]
    return write_dataset(folder, PNEUMONIA, labels, np.zeros((6, SIDE, SIDE), np.uint8), ("test",))


def keep(
    folder: Path, name: str, patients: int, *, model: str = OTHER, right: bool = False, split: str = "test"
) -> None:
    """Keep a batch of two cases a patient, all wrong, or with one that is right."""
    cases = [
        Case(image=f"{n}.png", finding=finding, label=0, probability=0.4 if right and not n else 0.9, threshold=0.5)
        for n in range(patients)
        for finding in PNEUMONIA.findings
    ]
    common = {"task": "pneumonia", "model": "m", "point": "screen", "dataset_hash": "", "split": split}
    hard.write(Dataset.open(folder), Batch(name=name, model_id=model, cases=tuple(cases), **common))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Give a base set and a version with its random-audit sample."""
    for name in ("base", "version", f"version/{AUDIT}"):
        dataset(tmp_path / "made" / name.replace("/", "-")).path.rename(tmp_path / name)
    return tmp_path / "base", tmp_path / "version"


def choose(
    folders: tuple[Path, Path], champion: str | None = CHAMPION, own: Gates | None = None, **gates: object
) -> Trials:
    wanted = gate_file.parse(COMPARED | gates)
    return trials.choose(wanted, own, *folders, champion=champion, margin=0.1)


def test_batches_that_nobody_named_are_judged_where_they_can_tell_something(folders: tuple[Path, Path]) -> None:
    base, version = folders
    keep(base, "mine", 3)
    keep(base, "tuned", 3, split="valid")
    keep(version, "wrong-dddddddd", 4)
    keep(version, "unsure-cccccccc", 3, model=CHAMPION, right=True)
    keep(version, "wrong-cccccccc", 5, model=CHAMPION)
    keep(version, "wrong-eeeeeeee", 2)
    found = choose(folders)
    assert {name: list(gates.hard) for name, (_, gates) in found.asked.items()} == {
        FIXED: ["mine"], FOUND: ["unsure-cccccccc", "wrong-dddddddd"], SAMPLE: [],
    }  # fmt: skip
    assert {gate.margin for _, gates in found.asked.values() for gate in gates.hard.values()} == {0.1}
    assert found.asked[FOUND][1].compares
    assert not found.asked[FOUND][1].floor
    for part, note in zip(
        ("tuned was not judged: it is of split valid", "wrong-cccccccc was not judged: the champion's own mistakes",
         "wrong-eeeeeeee was not judged: only 2 patients, 3 wanted"), found.notes, strict=True,
    ):  # fmt: skip
        assert part in note


def test_what_was_named_is_judged_as_it_says_wherever_it_lies(folders: tuple[Path, Path]) -> None:
    base, version = folders
    keep(base, "few", 1)
    keep(version, "wrong-cccccccc", 1, model=CHAMPION)
    named = {"few": {"floor": 0.5}, "wrong-cccccccc": {"floor": 0.4}}
    for champion in (CHAMPION, None):
        found = choose(folders, champion, hard=named)
        judged = {
            name: {key: gate.floor for key, gate in gates.hard.items()} for name, (_, gates) in found.asked.items()
        }
        assert judged[FIXED] == {"few": 0.5}
        assert judged[FOUND] == {"wrong-cccccccc": 0.4}
        assert found.notes == ([] if champion else ["there is no champion to compare with"])
    missing = choose(folders, hard={"gone": {"floor": 0.5}})
    assert list(missing.asked[FIXED][1].hard) == ["gone"]  # and judging says that there is none
    with pytest.raises(DatasetError, match="no hard batch 'gone'"):
        hard.read(Dataset.open(base), "gone")


def test_the_sample_is_judged_by_what_compares(folders: tuple[Path, Path]) -> None:
    asked = choose(folders).asked[SAMPLE]
    assert (asked[0], asked[1].floor, list(asked[1].margin)) == (folders[1] / AUDIT, {}, ["Pneumonia"])
    floors = choose(folders, margin={})
    assert SAMPLE not in floors.asked
    assert floors.notes == ["the random-audit sample was not judged: `gates` has no comparison; name `audit_gates`"]
    own = gate_file.parse({"floor": {"Pneumonia": {"auroc": 0.8}}})
    assert choose(folders, own=own, margin={}).asked[SAMPLE][1] == own
    (folders[1] / AUDIT).rename(folders[0] / AUDIT)
    assert choose(folders).notes == ["there is no random-audit sample to judge on yet"]
