"""Labels to look at again: those that were turned round are found, those of a sure model are not suspected for that."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner
from ward import SITE, Ward, dicom

from wetread.cli import app
from wetread.clinic import reviews
from wetread.improve import suspects


def test_labels_that_were_turned_round_are_found() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random(2000) < 0.2).astype(int)
    p = 1 / (1 + np.exp(-(rng.normal(size=2000) + 5 * truth - 3)))
    turned = rng.choice(2000, 60, replace=False)
    labels = truth.copy()
    labels[turned] = 1 - labels[turned]
    found = suspects.suspected(p, labels)
    assert found[turned].mean() > 0.6
    assert found.sum() < 150
    assert not suspects.suspected(p, p > 0.5).any()  # who agrees with the model is not suspected


def test_thresholds_are_the_mean_self_confidences() -> None:
    """By hand: where present was said it is 0.70 probable on average, where absent was said 0.73."""
    present, absent = [0.9] * 7 + [0.1, 0.25, 0.35], [0.1] * 9 + [0.71, 0.69, 0.9]
    p, labels = np.array(present + absent), np.array([1] * 10 + [0] * 12)
    assert p[suspects.suspected(p, labels)].tolist() == [0.1, 0.25, 0.71, 0.9]
    assert not suspects.suspected(p[1:], labels[1:]).any()  # nine are too few to say what is usual


def signed(ward: Ward, seed: int, name: str, answer: str, reader: str = "dr") -> str:
    study = ward.take(dicom(seed), name).study
    ward.work()
    reviews.save(ward.database, SITE, study, reader, answers={"Edema": answer}, sign=True)
    return study


@pytest.fixture
def turned(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Sign studies, one of them against a model that is right, and let two readers differ on another."""
    monkeypatch.setattr(suspects, "LEAST", 1)
    for seed, name in enumerate(("edema.dcm", "normal.dcm")):
        signed(ward, seed, name, "agree")
    wrong, differ = signed(ward, 2, "edema.dcm", "disagree"), signed(ward, 3, "edema.dcm", "agree")
    with ward.database.read() as connection:
        first = reviews.newest(connection, differ)
    assert first is not None
    reviews.save(ward.database, SITE, differ, "bob", parent=first.id, answers={"Edema": "disagree"}, sign=True)
    return {"wrong": wrong, "differ": differ}


@pytest.mark.system
def test_the_command_lists_them_with_a_link(ward: Ward, turned: dict[str, str], tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        found = CliRunner().invoke(app, ["curate", "suspects", "--data", str(tmp_path), *arguments])
        assert found.exit_code == 0, found.output
        return found.output

    found = json.loads(run("--json"))
    assert [(s["study"], s["why"], s["label"]) for s in found] == [
        (turned["wrong"], "model", 0),
        (turned["differ"], "readers", -1),
    ]
    assert (found[0]["link"], found[0]["probability"], found[0]["margin"]) == (f"/studies/{turned['wrong']}", 0.9, -0.8)
    assert run("--out", str(tmp_path / "s.csv")).strip().endswith("2 labels to look at again")
    with (tmp_path / "s.csv").open(newline="") as file:
        assert [row["study"] for row in csv.DictReader(file)] == [turned["wrong"], turned["differ"]]
    assert f"/studies/{turned['differ']}\tEdema\treaders differ" in run()
    assert json.loads(run("--json", "--site", "elsewhere")) == []
