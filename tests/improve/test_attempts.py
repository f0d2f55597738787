"""What a training learns from and when it is given up, without any training: slots, sites, files that change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from squares import SIDE, write_dataset
from typer.testing import CliRunner
from ward import SITE, Ward, dicom

from wetread.cli import app
from wetread.clinic import reviews, store
from wetread.config import Settings
from wetread.dataset.dataset import Dataset
from wetread.errors import TrainError
from wetread.findings import CHEXPERT, PNEUMONIA, Task
from wetread.improve import retrain
from wetread.improve.policy import load
from wetread.improve.retrain import Attempt, Retraining, Room
from wetread.improve.retrain_command import EXIT

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


def base(folder: Path, task: Task, label: int = 0) -> None:
    labels = np.eye(len(task.findings), dtype=np.float32)[[label] * 4]
    write_dataset(
        folder / task.name, task, labels, np.zeros((4, SIDE, SIDE), np.uint8), ("train", "valid", "test", "train")
    )


@pytest.fixture
def clinic(tmp_path: Path) -> Iterator[Ward]:
    """Give a clinic with four signed studies, two of children, and what a policy names."""
    ward = Ward(tmp_path / "clinic")
    for seed in range(4):
        study = ward.take(dicom(seed, PatientAge="005Y" if seed % 2 else "050Y"), "edema.dcm").study
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


def stop(*_: object) -> dict[str, Any]:
    raise TrainError("the machine was switched off")


def decide(room: Room, rule: Retraining, attempt: Attempt) -> dict[str, Any]:
    attempt.outcome = "staged"
    return {}


def test_each_site_goes_on_with_its_own_training_and_counts_since_that(
    go: Callable[..., Attempt], clinic: Ward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with clinic.database.write() as connection:
        store.ensure_site(connection, "south")
    monkeypatch.setattr(retrain, "STEPS", {"stop": stop})
    with pytest.raises(TrainError):
        go(site=SITE, force="to see")
    monkeypatch.setattr(retrain, "STEPS", {"decide": decide})
    south = go(site="south", force="to see")
    assert (south.facts["last"], south.facts["reviews"], south.site) == (None, 0, "south")
    everywhere = go(force="to see")
    assert (everywhere.facts["last"], everywhere.facts["reviews"]) == (None, 2)
    begun = retrain.attempts(tmp_path / "clinic")[0]
    assert go(site=SITE).id == begun.id
    assert go(site="south", force="again").facts["last"] == south.started.isoformat()
    assert f"at {SITE}: staged" in (begun.folder / "record.md").read_text()


def test_what_was_stopped_is_given_up_when_what_it_needs_was_changed(
    go: Callable[..., Attempt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("recipe.toml", "gates.toml", "chexpert", "--force"):
        monkeypatch.setattr(retrain, "STEPS", {"stop": stop})
        for _ in range(2):
            with pytest.raises(TrainError):
                go(force=f"to change {name}")
        begun = retrain.attempts(tmp_path / "clinic")[-1]
        assert begun.outcome == ""
        monkeypatch.setattr(retrain, "STEPS", {"decide": decide})
        if name == "chexpert":
            shutil.rmtree(tmp_path / name)
            base(tmp_path, CHEXPERT, label=1)
        elif name != "--force":
            (tmp_path / name).write_text("# the learning rate was too large")
        made = go(force="once more" if name == "--force" else f"to change {name}")
        gone = retrain.attempts(tmp_path / "clinic")[-2]
        assert (made.outcome, gone.id, gone.outcome) == ("staged", begun.id, "failed")
        changed = "another was asked for: once more" if name == "--force" else f"{name} was changed before it ended"
        assert gone.why == f"given up: {changed}"
        assert gone.why in (gone.folder / "record.md").read_text()
    assert go().outcome == "not due"


def test_the_exit_code_tells_what_came_of_it(clinic: Ward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.toml").write_text(POLICY)

    def code(*more: str) -> tuple[int, str]:
        ran = CliRunner().invoke(app, ["retrain", "policy.toml", "--data", "clinic", "--json", *more])
        return ran.exit_code, json.loads(ran.stdout)["outcome"] if ran.stdout else type(ran.exception).__name__

    assert set(EXIT) == set(get_args(retrain.Outcome))
    with monkeypatch.context() as patched:
        patched.setattr(retrain, "STEPS", {"stop": stop})
        assert code("--force", "to see")[1] == "TrainError"  # which `main` makes a line and 2
        patched.setattr(retrain, "STEPS", {"decide": decide})
        assert code() == (0, "staged")
    with clinic.database.write() as connection:
        connection.execute(store.study.update().values(reading="unread"))
    assert code("--force", "nothing is signed") == (1, "failed")
    last = retrain.attempts(tmp_path / "clinic")[-1]
    assert "not one signed study can be learnt from" in (last.folder / "record.md").read_text()
