"""What a training learns from and when it is given up, without any training: slots, sites, files that change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from squares import SIDE, write_dataset
from ward import SITE, Ward, dicom

from wetread.clinic import reviews
from wetread.config import Settings
from wetread.dataset.dataset import Dataset
from wetread.findings import CHEXPERT, PNEUMONIA, Task
from wetread.improve import retrain
from wetread.improve.policy import load
from wetread.improve.retrain import Attempt, Retraining, Room

POLICY = """
slot = "chexpert/adult"
[when]
reviews = 4
least_reviews = 1
[train]
base = "chexpert"
recipe = "recipe.toml"
[gate]
gates = "gates.toml"
"""


def base(folder: Path, task: Task) -> None:
    labels = np.eye(len(task.findings), dtype=np.float32)[[0] * 4]
    write_dataset(
        folder / task.name, task, labels, np.zeros((4, SIDE, SIDE), np.uint8), ("train", "valid", "test", "train")
    )


@pytest.fixture
def clinic(tmp_path: Path) -> Iterator[Ward]:
    """Give a clinic with four signed studies, two of children, and what a policy names."""
    ward = Ward(tmp_path / "clinic")
    for seed in range(4):
        study = ward.take(dicom(seed, PatientAge="005Y" if seed % 2 else "050Y"), "edema.dcm").study
        ward.work()
        reviews.save(ward.database, SITE, study, "dr", sign=True, added=["Pneumonia"])
    base(tmp_path, CHEXPERT)
    for name in ("recipe.toml", "gates.toml"):
        (tmp_path / name).write_text("")
    yield ward
    ward.database.close()


@pytest.fixture
def go(clinic: Ward, tmp_path: Path) -> Callable[..., Attempt]:
    def run(changes: dict[str, str] | None = None, site: str = "", **more: Any) -> Attempt:
        text = POLICY
        for was, now in (changes or {}).items():
            text = text.replace(was, now)
        (tmp_path / "policy.toml").write_text(text)
        at, settings = tmp_path / "clinic", Settings(threads=1)
        room = Room(clinic.database, clinic.archive, at, settings, site, tmp_path, "test", lambda _: None)
        return retrain.run(room, load(tmp_path / "policy.toml", Retraining), **more)

    return run


@pytest.mark.system
def test_each_slot_learns_from_the_patients_whom_it_serves(
    go: Callable[..., Attempt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base(tmp_path, PNEUMONIA)
    steps = {name: retrain.STEPS[name] for name in ("curate", "join")}
    monkeypatch.setattr(retrain, "STEPS", steps)
    made = [
        go(force="to see"),
        go({"chexpert/adult": "pneumonia/child", '"chexpert"': '"pneumonia"'}, force="to see"),
    ]
    versions = [Dataset.open(one.done["curate"]["version"]) for one in made]
    assert [v.manifest["age_years"].to_list() for v in versions] == [[50, 50], [5, 5]]
    assert [v.task.name for v in versions] == ["chexpert", "pneumonia"]
    assert [sum(one.done["join"]["splits"].values()) for one in made] == [6, 6]
